package export

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
	"github.com/hyper2kvm/hyper2kvm/internal/output"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/internal/stream"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

// task is one item of the lease on its way.
type task struct {
	name   string // of the file it becomes
	stream string // of what the host sends; the same unless it becomes an image
	item   Item
	handle *progress.Handle
	files  []output.File // set when they are whole; the first is called name

	damaged    int   // how often its bytes disagreed with the host
	distrusted bool  // the host did not give the hash it had promised
	last       error // why it needs another lease

	// Set while the stream has ended but its hash is not in the manifest yet.
	awaiting       *download
	lease          Lease // the one that sent it
	fromEarlierRun bool  // its beginning was

	proved proof
}

// proof is what was found of a stream that is whole.
type proof struct {
	how                 output.Proof
	stream              output.Stream
	capacity, populated int64
}

func (t *task) label() string {
	if t.item.Label == "" {
		return t.name
	}
	return fmt.Sprintf("%s (%s)", t.item.Label, t.name)
}

// names are those of the files that the task leaves.
func (t *task) names(p Plan) []string {
	if t.name != t.stream && p.KeepStream {
		return []string{t.name, t.stream}
	}
	return []string{t.name}
}

// tasks names the files of a lease. Disks are numbered apart from the rest, as
// ovftool does; nothing of a host's suggestion but a harmless extension is
// used.
func (p Plan) tasks(stem string, items []Item) ([]*task, error) {
	var tasks []*task
	disks, others := 0, 0
	for _, item := range items {
		t := &task{item: item}
		switch item.Role {
		case output.RoleDisk:
			t.stream = fmt.Sprintf("%s-disk-%d.vmdk", stem, disks)
			if p.converts() {
				t.name = fmt.Sprintf("%s-disk-%d.%s", stem, disks, p.Format)
			}
			disks++
		case output.RoleMedia:
			if !p.IncludeMedia {
				continue
			}
			t.stream = fmt.Sprintf("%s-file-%d%s", stem, others, output.Extension(path.Base(item.TargetID), ".iso"))
			others++
		case output.RoleNVRAM:
			t.stream = fmt.Sprintf("%s-file-%d.nvram", stem, others)
			others++
		default:
			t.stream = fmt.Sprintf("%s-file-%d%s", stem, others, output.Extension(path.Base(item.TargetID), ".bin"))
			others++
		}
		if t.name == "" {
			t.name = t.stream
		}
		tasks = append(tasks, t)
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

// begin opens what a task's stream becomes.
func (r *run) begin(ctx context.Context, lease Lease, t *task) (*download, error) {
	var b body
	switch {
	case r.archive != nil:
		b = r.archive.begin(t.stream)
	case t.name == t.stream || r.plan.KeepStream:
		partial, err := r.plan.Folder.Open(t.stream)
		if err != nil {
			return nil, err
		}
		b = partial
	default:
		b = newTail()
	}
	promised := lease.SendsSHA256()
	var c *conversion
	if t.name != t.stream {
		partial, err := r.plan.Folder.Open(t.name)
		if err != nil {
			return nil, errors.Join(err, b.Close())
		}
		c = r.plan.conversion(ctx, partial, func() bool { return r.plan.VerifyGrains || !promised || t.distrusted })
	}
	return newDownload(t, b, c, !promised), nil
}

// fetch brings one file home, proves it and gives it its name. A nil error
// means that t.files is set.
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
	d, err := r.begin(ctx, lease, t)
	if err != nil {
		return &localError{err}
	}
	defer func() {
		if t.awaiting != nil {
			return
		}
		if cerr := d.close(); cerr != nil && err == nil {
			err = &localError{cerr}
		}
	}()
	if err := r.adopt(ctx, d, t); err != nil {
		return err
	}
	t.fromEarlierRun = d.Offset() > 0

	supply := &supplier{run: r, task: t, lease: lease}
	defer supply.release()
	for {
		supply.retry = stream.Retry{}
		err := stream.Fetch(ctx, supply.next, d, r.fetchOptions(t, supply))
		supply.release()
		if err != nil {
			return r.fetchFailed(ctx, t, d, err)
		}
		t.fromEarlierRun = t.fromEarlierRun && !d.dropped
		t.handle.SetState(progress.Checking)
		err = r.prove(ctx, supply.lease, t, d, false)
		switch {
		case err == nil:
			return r.commit(ctx, t, d)
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
	return d.close()
}

// settle proves a file at the end of its lease's last stream. The manifest is
// as full as it will be: a file without a hash is checked by itself.
func (r *run) settle(ctx context.Context, t *task) (err error) {
	d := t.awaiting
	t.awaiting = nil
	defer func() {
		if cerr := d.close(); cerr != nil && err == nil {
			err = &localError{cerr}
		}
		if err != nil && !errors.Is(err, errNextLease) {
			t.handle.Fail(err.Error())
		}
	}()
	err = r.prove(ctx, t.lease, t, d, true)
	switch {
	case err == nil:
		return r.commit(ctx, t, d)
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
	r.plan.Observer.Damaged()
	if t.damaged >= maxDamage {
		if err := d.discard(); err != nil {
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

func (r *run) fetchOptions(t *task, supply *supplier) stream.Options {
	o := r.plan.Retry
	if r.plan.Pace != nil {
		o.Pace = r.plan.Pace.Wait
	}
	o.OnRead = func(n int) {
		t.handle.Took(int64(n))
		r.plan.Observer.Took(n)
	}
	o.OnReset = func() {
		r.tracker.Remark(slog.LevelInfo, "stream starts again", slog.String("file", t.name))
	}
	o.OnRetry = func(x stream.Retry) {
		r.plan.Observer.Retried()
		supply.release() // others may have the host meanwhile
		supply.retry = x
		t.handle.Retry(x.Attempt, x.Err.Error())
		r.tracker.Remark(slog.LevelWarn, "transfer is retried", slog.String("file", t.name),
			slog.Int("attempt", x.Attempt), slog.Int64("offset", x.Offset),
			slog.Duration("wait", x.Wait.Round(100*time.Millisecond)), slog.String("error", x.Err.Error()))
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
	if d.Offset() == 0 {
		return nil
	}
	if r.plan.State == "" {
		if err := d.Reset(); err != nil {
			return &localError{err}
		}
		return nil
	}
	size := d.Offset()
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
	found := proof{
		how:      output.ProofNone,
		stream:   output.Stream{Size: d.Offset(), SHA256: hex.EncodeToString(d.sha256.Sum(nil))},
		capacity: t.item.Capacity,
	}
	if d.scanner != nil {
		found.capacity = d.scanner.Capacity()
	}
	if digest != nil {
		if err := r.compare(ctx, t, d, digest, &found); err != nil {
			return err
		}
	}
	if found.how == output.ProofNone && t.item.Role == output.RoleDisk {
		if err := r.proveAlone(ctx, t, d); err != nil {
			return err
		}
		found.how = output.ProofGrains
		r.warn("the host gave no hash, the disk is checked by its own grain checksums only", slog.String("file", t.name))
	} else if found.how == output.ProofNone {
		r.tracker.Remark(slog.LevelInfo, "the host gave no hash of a file", slog.String("file", t.name))
	}
	if c := t.item.Capacity; c > 0 && d.scanner != nil && c != found.capacity {
		r.warn("the stream's disk has another size than the VM's", slog.String("file", t.name),
			slog.Int64("stream", found.capacity), slog.Int64("vm", c))
	}
	t.proved = found
	return nil
}

// compare holds a stream against the host's manifest.
func (r *run) compare(ctx context.Context, t *task, d *download, digest *Digest, found *proof) error {
	found.populated = digest.PopulatedSize
	held := &found.stream
	if digest.Size > 0 && digest.Size != held.Size {
		return fmt.Errorf("%d bytes are held, the host's manifest says %d", held.Size, digest.Size)
	}
	if digest.SHA256 != "" {
		if !strings.EqualFold(digest.SHA256, held.SHA256) {
			return fmt.Errorf("SHA-256 is %s, the host's manifest says %s", held.SHA256, digest.SHA256)
		}
		found.how = output.ProofHost
	}
	if digest.SHA1 == "" || d.sha1 == nil && digest.SHA256 != "" {
		return nil
	}
	sum, ok, err := d.sumSHA1(ctx)
	if err != nil {
		return &localError{err}
	}
	if !ok {
		return t.distrust("SHA-1")
	}
	if held.SHA1 = sum; !strings.EqualFold(digest.SHA1, held.SHA1) {
		return fmt.Errorf("SHA-1 is %s, the host's manifest says %s", held.SHA1, digest.SHA1)
	}
	found.how = output.ProofHost
	return nil
}

// distrust has the stream taken again with everything computed that could be
// left out because the host had promised a SHA-256.
func (t *task) distrust(given string) error {
	t.distrusted = true
	return fmt.Errorf("the host promised a SHA-256 of it and gave %s", given)
}

// proveAlone proves a disk that the host gave no hash of by the checksums of
// its grains.
func (r *run) proveAlone(ctx context.Context, t *task, d *download) error {
	if t.fromEarlierRun {
		return errors.New("it was continued from an earlier run and the host gave no hash to prove it by")
	}
	if d.image != nil && d.image.checked() {
		return nil // as it was written
	}
	stream := d.body.Reader()
	if stream == nil {
		return t.distrust("none")
	}
	if _, err := vmdk.CheckGrains(ctx, stream, nil); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("check of every grain: %w", err)
	}
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

// commit gives what a proved stream became its names.
func (r *run) commit(ctx context.Context, t *task, d *download) error {
	p := t.proved
	file := output.File{
		Name: t.stream, Role: t.item.Role, Size: p.stream.Size, SHA256: p.stream.SHA256, SHA1: p.stream.SHA1,
		Proof: p.how, LeaseKey: t.item.Key, Capacity: p.capacity, PopulatedSize: p.populated,
	}
	files := []output.File{file}
	if s, ok := d.body.(*section); ok {
		files[0].Archive, files[0].Offset = r.archive.name, s.base
	}
	err := d.body.Commit()
	if err == nil && d.image != nil {
		image := file
		image.Name, image.SHA1, image.Stream = t.name, "", &p.stream
		var sums output.Sums
		if image.Size, sums, err = d.image.partial.Sum(ctx, nil); err == nil {
			image.SHA256, image.DataSHA256 = sums.SHA256, sums.Data
			err = d.image.partial.Commit()
		}
		files[0].Role = output.RoleStream
		if files = append([]output.File{image}, files...); !r.plan.KeepStream {
			files = files[:1]
		}
	}
	if ctx.Err() != nil && err != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		err = r.journal.Finish(files...)
	}
	if space, ok := errors.AsType[*output.SpaceError](err); ok {
		err = r.outOfSpace(t, space)
	}
	if err != nil {
		return &localError{err}
	}
	t.files = files
	t.handle.Finish(progress.Done, p.stream.Size)
	r.plan.Observer.Proved(string(p.how))
	r.tracker.Remark(slog.LevelInfo, "file is whole", slog.String("file", t.name),
		slog.Int64("size", files[0].Size), slog.String("proof", string(p.how)))
	return nil
}

// supplier gives the source of each attempt: the same one as long as its
// lease lives and answers, another lease's otherwise.
type supplier struct {
	run   *run
	task  *task
	lease Lease
	retry stream.Retry // what the next attempt is; zero for the first

	place func() // gives the attempt's place at its host back; nil without one
}

// acquire waits for an attempt's place at a host. It is no part of the
// attempt, which has a time in which the host must answer.
func (s *supplier) acquire(ctx context.Context, host string) error {
	h := s.task.handle
	if pace := s.run.plan.Pace; pace != nil {
		h.SetState(progress.Waiting)
		var err error
		if s.place, err = pace.Acquire(ctx, host); err != nil {
			return &stream.PermanentError{Err: fmt.Errorf("wait for a stream of host %s: %w", host, err)}
		}
	}
	if s.retry.Err != nil {
		h.Retry(s.retry.Attempt, s.retry.Err.Error())
	} else {
		h.SetState(progress.Downloading)
	}
	return nil
}

// release ends what acquire began.
func (s *supplier) release() {
	if s.place != nil {
		s.place()
		s.place = nil
	}
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
			if err := s.acquire(ctx, item.Host); err != nil {
				return nil, err
			}
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
