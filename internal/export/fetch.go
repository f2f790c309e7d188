package export

import (
	"context"
	"crypto/sha1" //nolint:gosec // the hash that lease manifests are made of
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path"
	"runtime/debug"
	"strings"

	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
	"github.com/hyper2kvm/hyper2kvm/internal/output"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/internal/stream"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

// task is one file on its way.
type task struct {
	name   string
	item   Item
	handle *progress.Handle
	file   *output.File // set when the file is whole

	damaged int   // how often its bytes disagreed with the host
	last    error // why it needs another lease

	// Set while the stream has ended but its hash is not in the manifest yet.
	awaiting       *download
	lease          Lease // the one that sent it
	fromEarlierRun bool  // its beginning was
}

func (t *task) label() string {
	if t.item.Label == "" {
		return t.name
	}
	return fmt.Sprintf("%s (%s)", t.item.Label, t.name)
}

// tasks names the files of a lease. Disks are numbered apart from the rest, as
// ovftool does; nothing of a host's suggestion but a harmless extension is
// used.
func (p Plan) tasks(stem string, items []Item) ([]*task, error) {
	var tasks []*task
	disks, others := 0, 0
	for _, item := range items {
		var name string
		switch item.Role {
		case output.RoleDisk:
			name = fmt.Sprintf("%s-disk-%d.vmdk", stem, disks)
			disks++
		case output.RoleMedia:
			if !p.IncludeMedia {
				continue
			}
			name = fmt.Sprintf("%s-file-%d%s", stem, others, output.Extension(path.Base(item.TargetID), ".iso"))
			others++
		case output.RoleNVRAM:
			name = fmt.Sprintf("%s-file-%d.nvram", stem, others)
			others++
		default:
			name = fmt.Sprintf("%s-file-%d%s", stem, others, output.Extension(path.Base(item.TargetID), ".bin"))
			others++
		}
		tasks = append(tasks, &task{name: name, item: item})
	}
	if disks == 0 {
		return nil, problem.New(problem.Conflict, fmt.Sprintf("export VM %q", p.VM.Path),
			errors.New("the host offers no disks of it"), "a VM without disks cannot be exported")
	}
	return tasks, nil
}

// errNextLease is wrapped by errors of a disk that should be tried again under
// another lease once the others have ended.
var errNextLease = errors.New("another lease is needed")

// errAwaitsProof says that a stream is complete and that the host's manifest
// does not hold its hash yet.
var errAwaitsProof = errors.New("the manifest does not hold it yet")

// localError is trouble on this side: it concerns every file of the export.
type localError struct{ error }

func (e *localError) Unwrap() error { return e.error }

func isLocal(err error) bool {
	_, ok := errors.AsType[*localError](err)
	return ok
}

// fetch brings one file home, proves it and gives it its name. A nil error
// means that t.file is set.
func (r *run) fetch(ctx context.Context, lease Lease, t *task) (err error) {
	defer func() {
		if v := recover(); v != nil {
			r.tracker.Remark(slog.LevelError, "panic", slog.Any("value", v), slog.String("stack", string(debug.Stack())))
			err = &localError{fmt.Errorf("internal error: %v", v)}
		}
		switch {
		case err == nil:
		case errors.Is(err, errAwaitsProof):
		case ctx.Err() != nil:
			t.handle.SetState(progress.Waiting)
		case errors.Is(err, errNextLease):
			t.handle.Retry(1, t.last.Error())
		default:
			t.handle.Fail(err.Error())
		}
	}()
	partial, err := r.plan.Folder.Open(t.name)
	if err != nil {
		return &localError{err}
	}
	defer func() {
		if t.awaiting != nil {
			return
		}
		if cerr := partial.Close(); cerr != nil && err == nil {
			err = &localError{cerr}
		}
	}()
	d := newDownload(partial, t, !lease.SendsSHA256())
	if err := r.adopt(ctx, d, t); err != nil {
		return err
	}
	t.fromEarlierRun = d.Offset() > 0

	supply := &supplier{run: r, task: t, lease: lease}
	for {
		t.handle.SetState(progress.Downloading)
		err := stream.Fetch(ctx, supply.next, d, r.fetchOptions(t))
		if err != nil {
			return r.fetchFailed(ctx, t, d, err)
		}
		t.fromEarlierRun = t.fromEarlierRun && !d.dropped
		t.handle.SetState(progress.Checking)
		err = r.prove(ctx, supply.lease, t, d, false)
		switch {
		case err == nil:
			return r.commit(t, d)
		case errors.Is(err, errAwaitsProof):
			t.awaiting, t.lease = d, supply.lease
			return err
		case ctx.Err() != nil || isLocal(err):
			return err
		}
		if err := r.again(t, d, err); err != nil {
			return err
		}
	}
}

// stopAwaiting closes the file of a task that will not be settled.
func (t *task) stopAwaiting() error {
	if t.awaiting == nil {
		return nil
	}
	d := t.awaiting
	t.awaiting = nil
	return d.partial.Close()
}

// settle proves a file at the end of its lease's last stream. The manifest is
// as full as it will be: a file without a hash is checked by itself.
func (r *run) settle(ctx context.Context, t *task) (err error) {
	d := t.awaiting
	t.awaiting = nil
	defer func() {
		if cerr := d.partial.Close(); cerr != nil && err == nil {
			err = &localError{cerr}
		}
		if err != nil && !errors.Is(err, errNextLease) {
			t.handle.Fail(err.Error())
		}
	}()
	err = r.prove(ctx, t.lease, t, d, true)
	switch {
	case err == nil:
		return r.commit(t, d)
	case ctx.Err() != nil || isLocal(err):
		return err
	}
	if aerr := r.again(t, d, err); aerr != nil {
		return aerr
	}
	t.last = err
	return fmt.Errorf("%s: %w: %w", t.label(), errNextLease, err)
}

// again drops a file whose bytes could not be proved, so that it is taken once
// more; after maxDamage times it is the file's end.
func (r *run) again(t *task, d *download, why error) error {
	t.damaged++
	if t.damaged >= maxDamage {
		if err := d.partial.Discard(); err != nil {
			r.tracker.Remark(slog.LevelWarn, "could not remove a damaged file", slog.String("error", err.Error()))
		}
		return problem.New(problem.Failed, t.label(), why, "the host or the network damages data; try another network path or host")
	}
	r.tracker.Remark(slog.LevelWarn, "file is taken again", slog.String("file", t.name), slog.String("error", why.Error()))
	t.handle.Retry(1, why.Error())
	if err := d.Reset(); err != nil {
		return &localError{err}
	}
	t.fromEarlierRun = false
	return nil
}

func (r *run) fetchOptions(t *task) stream.Options {
	o := r.plan.Retry
	o.OnRead = func(n int) { t.handle.Took(int64(n)) }
	o.OnReset = func() {
		r.tracker.Remark(slog.LevelInfo, "stream starts again", slog.String("file", t.name))
	}
	o.OnRetry = func(x stream.Retry) {
		t.handle.Retry(x.Attempt, x.Err.Error())
		r.tracker.Remark(slog.LevelWarn, "transfer is retried", slog.String("file", t.name),
			slog.Int("attempt", x.Attempt), slog.Int64("offset", x.Offset),
			slog.Duration("wait", x.Wait), slog.String("error", x.Err.Error()))
	}
	return o
}

// fetchFailed sorts the end of a transfer.
func (r *run) fetchFailed(ctx context.Context, t *task, d *download, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if space, ok := errors.AsType[*output.SpaceError](err); ok {
		return &localError{r.outOfSpace(t, space)}
	}
	if d.broken != nil {
		return &localError{problem.New(problem.Failed, t.label(), d.broken, "check the disk and its file system")}
	}
	if errors.Is(err, ErrBusy) {
		t.last = err
		return fmt.Errorf("%s: %w: %w", t.label(), errNextLease, err)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return problem.New(problem.Unreachable, t.label(), err,
			"disks come from the ESXi host itself: check that its port can be reached from here")
	}
	return fmt.Errorf("%s: %w", t.label(), err)
}

// outOfSpace says which file did not fit and what is still needed, judged by
// how far the streams have come.
func (r *run) outOfSpace(t *task, err *output.SpaceError) error {
	why := fmt.Sprintf("%s: %v", t.label(), err)
	snap := r.tracker.Snapshot()
	if snap.Percent > 1 && snap.Percent < 100 {
		rest := float64(snap.Received) * (100 - snap.Percent) / snap.Percent
		why += fmt.Sprintf("; at %.0f %% of the disks about %.0f MiB more are needed", snap.Percent, max(1, rest/(1<<20)))
	} else if rest := t.handle.Rest(); rest > 0 {
		why += fmt.Sprintf("; up to %d MiB more are needed for this file alone", (rest+1<<20-1)>>20)
	}
	return problem.New(problem.Failed, "", errors.New(why), "free space in "+r.plan.Folder.Dir()+" and run the same export again")
}

// adopt takes over what an earlier run left of the file: it is read again, for
// its hashes and its structure. What does not hold together is dropped.
func (r *run) adopt(ctx context.Context, d *download, t *task) error {
	if d.partial.Size() == 0 {
		return nil
	}
	if r.plan.State == "" {
		if err := d.Reset(); err != nil {
			return &localError{err}
		}
		return nil
	}
	size := d.partial.Size()
	err := d.replay(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		r.tracker.Remark(slog.LevelInfo, "partial file is dropped", slog.String("file", t.name), slog.String("error", err.Error()))
		if err := d.Reset(); err != nil {
			return &localError{err}
		}
		return nil
	}
	r.tracker.Remark(slog.LevelInfo, "partial file is continued", slog.String("file", t.name), slog.Int64("offset", size))
	return nil
}

// prove compares what is held with what the host says it sent. An error that
// is neither local nor errAwaitsProof means that the bytes are wrong, or
// cannot be shown to be right. Final says that the manifest will not get any
// fuller.
func (r *run) prove(ctx context.Context, lease Lease, t *task, d *download, final bool) error {
	digest, err := manifestEntry(ctx, lease, t.item.Key)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if digest == nil && !final {
		return errAwaitsProof
	}
	if err != nil {
		r.tracker.Remark(slog.LevelWarn, "the lease has no manifest to compare with", slog.String("file", t.name), slog.String("error", err.Error()))
	}
	file := &output.File{
		Name: t.name, Role: t.item.Role, Size: d.Offset(), LeaseKey: t.item.Key,
		SHA256: hex.EncodeToString(d.sha256.Sum(nil)), Capacity: t.item.Capacity, Proof: output.ProofNone,
	}
	if d.scanner != nil {
		file.Capacity = d.scanner.Capacity()
	}
	if digest != nil {
		file.PopulatedSize = digest.PopulatedSize
		if digest.Size > 0 && digest.Size != file.Size {
			return fmt.Errorf("%d bytes are held, the host's manifest says %d", file.Size, digest.Size)
		}
		if digest.SHA256 != "" {
			if !strings.EqualFold(digest.SHA256, file.SHA256) {
				return fmt.Errorf("SHA-256 is %s, the host's manifest says %s", file.SHA256, digest.SHA256)
			}
			file.Proof = output.ProofHost
		}
		if digest.SHA1 != "" && (d.sha1 != nil || digest.SHA256 == "") {
			if file.SHA1, err = d.sumSHA1(ctx); err != nil {
				return &localError{err}
			}
			if !strings.EqualFold(digest.SHA1, file.SHA1) {
				return fmt.Errorf("SHA-1 is %s, the host's manifest says %s", file.SHA1, digest.SHA1)
			}
			file.Proof = output.ProofHost
		}
	}
	if file.Proof == output.ProofNone && t.item.Role == output.RoleDisk {
		if t.fromEarlierRun {
			return errors.New("it was continued from an earlier run and the host gave no hash to prove it by")
		}
		if _, err := vmdk.CheckGrains(ctx, d.partial.Reader(), nil); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("check of every grain: %w", err)
		}
		file.Proof = output.ProofGrains
		r.warn("the host gave no hash, the disk is checked by its own grain checksums only", slog.String("file", t.name))
	} else if file.Proof == output.ProofNone {
		r.tracker.Remark(slog.LevelInfo, "the host gave no hash of a file", slog.String("file", t.name))
	}
	if c := t.item.Capacity; c > 0 && d.scanner != nil && c != file.Capacity {
		r.warn("the stream's disk has another size than the VM's", slog.String("file", t.name),
			slog.Int64("stream", file.Capacity), slog.Int64("vm", c))
	}
	t.file = file
	return nil
}

// manifestEntry gives the manifest's entry for a key, nil when it has none.
func manifestEntry(ctx context.Context, lease Lease, key string) (*Digest, error) {
	digests, err := lease.Manifest(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range digests {
		if d.Key == key {
			return &d, nil
		}
	}
	return nil, nil
}

// commit gives a proved file its name.
func (r *run) commit(t *task, d *download) error {
	if err := d.partial.Commit(); err != nil {
		if space, ok := errors.AsType[*output.SpaceError](err); ok {
			err = r.outOfSpace(t, space)
		}
		return &localError{err}
	}
	if err := r.journal.Finish(*t.file); err != nil {
		return &localError{err}
	}
	t.handle.Finish(progress.Done, t.file.Size)
	r.tracker.Remark(slog.LevelInfo, "file is whole", slog.String("file", t.name),
		slog.Int64("size", t.file.Size), slog.String("proof", string(t.file.Proof)))
	return nil
}

// supplier gives the source of each attempt: the same one as long as its
// lease lives and answers, another lease's otherwise.
type supplier struct {
	run   *run
	task  *task
	lease Lease
}

func (s *supplier) next(ctx context.Context, last error) (stream.Source, error) {
	if s.lease.Err() != nil || errors.Is(last, stream.ErrEmpty) {
		why := s.lease.Err()
		if why == nil {
			why = last
		}
		s.run.tracker.Remark(slog.LevelWarn, "a fresh lease is opened", slog.String("file", s.task.name), slog.String("error", why.Error()))
		lease, err := s.run.leases.instead(ctx, s.lease)
		if errors.Is(err, ErrBusy) {
			// The host allows one lease at a time: it is this disk's turn when
			// the others have ended.
			return nil, &stream.PermanentError{Err: err}
		}
		if err != nil {
			return nil, fmt.Errorf("open a fresh lease: %w", err)
		}
		s.lease = lease
	}
	for _, item := range s.lease.Items() {
		if item.Key == s.task.item.Key {
			return &leasedSource{lease: s.lease, source: item.Source}, nil
		}
	}
	return nil, &stream.PermanentError{Err: fmt.Errorf("the fresh lease does not offer %s any more", s.task.item.Key)}
}

// leasedSource tells a URL that is gone because its lease is lost from one
// that never was: the former is worth another attempt.
type leasedSource struct {
	lease  Lease
	source stream.Source
}

func (s *leasedSource) Open(ctx context.Context, offset int64) (*stream.Body, error) {
	body, err := s.source.Open(ctx, offset)
	status, ok := errors.AsType[*stream.StatusError](err)
	if !ok || status.Temporary() {
		return body, err
	}
	// The host knows before the keepalive does: a call on the lease finds out.
	if _, merr := s.lease.Manifest(ctx); merr != nil && s.lease.Err() != nil {
		return nil, fmt.Errorf("%w (%w)", s.lease.Err(), errors.New(status.Error()))
	}
	return nil, err
}

// download is a stream.Target: a file with its hashes and, for a disk, its
// structure.
type download struct {
	partial *output.Partial
	task    *task
	scanner *vmdk.Scanner // nil for files that are no disks
	sha256  hashState
	sha1    hashState // nil when not needed
	hashed  int64
	dropped bool  // Reset was called
	broken  error // the local failure that ended it
}

type hashState interface {
	io.Writer
	Sum([]byte) []byte
	Reset()
}

func newDownload(p *output.Partial, t *task, withSHA1 bool) *download {
	d := &download{partial: p, task: t, sha256: sha256.New()}
	if withSHA1 {
		d.sha1 = sha1.New() //nolint:gosec // see the import
	}
	d.restart()
	return d
}

func (d *download) restart() {
	if d.task.item.Role == output.RoleDisk {
		d.scanner = vmdk.NewScanner()
	}
	d.sha256.Reset()
	if d.sha1 != nil {
		d.sha1.Reset()
	}
	d.hashed = 0
}

// Write checks, hashes and stores the next bytes. The hashes and the write run
// side by side.
func (d *download) Write(p []byte) (int, error) {
	if err := d.scan(p); err != nil {
		return 0, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.hash(p)
	}()
	n, err := d.partial.Write(p)
	<-done
	if err != nil {
		d.broken = err
		return n, err
	}
	d.task.handle.Holds(d.Offset(), d.position())
	return n, nil
}

func (d *download) scan(p []byte) error {
	if d.scanner == nil {
		return nil
	}
	if _, err := d.scanner.Write(p); err != nil {
		return &stream.DamageError{Err: err}
	}
	if c := d.scanner.Capacity(); c > 0 {
		d.task.handle.SetCapacity(c)
	}
	return nil
}

// hash feeds both hashes; they take about as long as the write they run
// beside.
func (d *download) hash(p []byte) {
	_, _ = d.sha256.Write(p) // a hash never fails
	if d.sha1 != nil {
		_, _ = d.sha1.Write(p)
	}
	d.hashed += int64(len(p))
}

func (d *download) position() int64 {
	if d.scanner != nil {
		return d.scanner.Position()
	}
	return d.partial.Size()
}

// Offset is part of stream.Target.
func (d *download) Offset() int64 { return d.partial.Size() }

// Tail is part of stream.Target.
func (d *download) Tail(p []byte) error {
	_, err := d.partial.ReadAt(p, d.partial.Size()-int64(len(p)))
	return err
}

// Reset is part of stream.Target.
func (d *download) Reset() error {
	d.restart()
	d.dropped = true
	d.task.handle.Holds(0, 0)
	if err := d.partial.Reset(); err != nil {
		d.broken = err
		return err
	}
	return nil
}

// Finish is part of stream.Target.
func (d *download) Finish(size int64) error {
	held := d.Offset()
	if size >= 0 && held < size {
		return fmt.Errorf("%w: %d of %d bytes", stream.ErrShort, held, size)
	}
	if size >= 0 && held > size {
		return &stream.DamageError{Err: fmt.Errorf("%d bytes are held, the stream has %d", held, size)}
	}
	if want := d.task.item.Size; d.scanner == nil && want > 0 && held != want {
		if held < want {
			return fmt.Errorf("%w: %d of %d bytes", stream.ErrShort, held, want)
		}
		return &stream.DamageError{Err: fmt.Errorf("%d bytes are held, the lease says %d", held, want)}
	}
	if d.scanner == nil {
		return nil
	}
	switch err := d.scanner.Finish(); {
	case err == nil:
		return nil
	case errors.Is(err, vmdk.ErrTruncated):
		return fmt.Errorf("%w: %w", stream.ErrShort, err)
	default:
		return &stream.DamageError{Err: err}
	}
}

// replay feeds what the partial file holds through the hashes and the
// structure check.
func (d *download) replay(ctx context.Context) error {
	return d.readBack(ctx, func(p []byte) error {
		if err := d.scan(p); err != nil {
			return err
		}
		d.hash(p)
		d.task.handle.Holds(d.hashed, d.position())
		return nil
	})
}

// sumSHA1 gives the SHA-1 of what is held, read back if it was not computed on
// the way.
func (d *download) sumSHA1(ctx context.Context) (string, error) {
	if d.sha1 == nil {
		sum := sha1.New() //nolint:gosec // see the import
		err := d.readBack(ctx, func(p []byte) error {
			_, err := sum.Write(p)
			return err
		})
		if err != nil {
			return "", err
		}
		d.sha1 = sum
	}
	return hex.EncodeToString(d.sha1.Sum(nil)), nil
}

// readBack hands all that is held to take, in order.
func (d *download) readBack(ctx context.Context, take func([]byte) error) error {
	buf := make([]byte, 1<<20)
	in := d.partial.Reader()
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := in.Read(buf)
		if terr := take(buf[:n]); terr != nil {
			return terr
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read it back: %w", err)
		}
	}
}
