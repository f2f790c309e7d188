// Package export is the pipeline that takes one VM's files from a lease into
// an output folder and proves them right. It decides nothing about which VM
// or where to: it is given an Origin and a Plan. It knows neither govmomi nor
// the daemon; a small adapter (internal/runner) joins it to vSphere.
package export

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/output"
	"github.com/hyper2kvm/hyper2kvm/internal/ovf"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/internal/stream"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

// Item is one file that a lease offers.
type Item struct {
	Key      string      // names the device in the lease and in its manifest
	Label    string      // for people: "Hard disk 1"
	Role     output.Role // disk, nvram, media or other
	TargetID string      // the host's suggestion for a file name; hostile
	Size     int64       // bytes, 0 while unknown; never set for disks
	Capacity int64       // bytes of guest address space, 0 while unknown
	Source   stream.Source
}

// Digest is what a lease's manifest says of one item. Empty hashes and zero
// sizes were not given.
type Digest struct {
	Key           string
	SHA1, SHA256  string
	Size          int64
	Capacity      int64
	PopulatedSize int64
}

// Lease gives the right to read a VM's disks while it is open.
type Lease interface {
	Items() []Item
	// Manifest says what the host has sent so far.
	Manifest(ctx context.Context) ([]Digest, error)
	// SendsSHA256 reports whether the manifest will hold SHA-256, so that
	// SHA-1 need not be computed.
	SendsSHA256() bool
	// SetPercent is passed on to the host with the next keepalive.
	SetPercent(percent int)
	// Err is not nil once the lease is known to be lost.
	Err() error
	// Close completes the lease when cause is nil and aborts it otherwise. It
	// works on a context of its own and may be called again.
	Close(ctx context.Context, cause error) error
}

// ErrBusy is matched by an OpenLease error that says that the VM is occupied
// by another lease or task.
var ErrBusy = errors.New("the VM is busy")

// DescriptorFile is one file as the descriptor shall name it.
type DescriptorFile struct {
	Key, Name                     string
	Size, Capacity, PopulatedSize int64
}

// Origin is the VM to export.
type Origin interface {
	OpenLease(ctx context.Context) (Lease, error)
	// Descriptor asks for the OVF envelope that names these files.
	Descriptor(ctx context.Context, name string, files []DescriptorFile) (xml []byte, warnings []string, err error)
}

// Plan says what to export where.
type Plan struct {
	VM       output.VM
	Hardware output.Hardware
	// State identifies the content of the VM's disks: an earlier run's files
	// are continued only under the same one. Empty means never.
	State        string
	Snapshot     bool
	Folder       *output.Folder
	Version      string
	Parallel     int // streams at once; at least 1
	Overwrite    bool
	IncludeMedia bool
	// NeedBytes is an estimate of the space the export takes; 0 when unknown.
	NeedBytes int64
	// Started is when the work on this VM began.
	Started time.Time
	Retry   stream.Options
}

// Result is what an export left behind.
type Result struct {
	Receipt output.Receipt
	OVF     string // name of the descriptor
}

const (
	// maxRounds bounds how often disks that a host refused under one lease
	// are tried under another one.
	maxRounds = 4
	// maxDamage is how often a stream may disagree with the host's manifest
	// before the export fails: once is an accident.
	maxDamage = 2
)

// Run exports a VM. On error nothing in the folder looks whole, what can be
// continued is kept, and every lease is given back; errors name the VM, the
// disk and what to do. Run ends within a moment of ctx's end.
func Run(ctx context.Context, origin Origin, plan Plan, tracker *progress.Tracker) (Result, error) {
	what := fmt.Sprintf("export VM %q", plan.VM.Path)
	journal, err := plan.Folder.Begin(plan.VM, plan.State, plan.Hardware.Removed, plan.Overwrite)
	if err != nil {
		return Result{}, err
	}
	r := &run{origin: origin, plan: plan, journal: journal, tracker: tracker, leases: newLeases(origin)}
	result, err := r.guarded(ctx)
	if err == nil {
		return result, nil
	}
	cancelled := ctx.Err() != nil
	if cancelled {
		err = context.Cause(ctx)
	}
	kept, kerr := journal.Abandon()
	if kerr != nil {
		tracker.Remark(slog.LevelWarn, "could not tidy the output folder", slog.String("error", kerr.Error()))
	}
	kind := problem.KindOf(err)
	if cancelled {
		kind = problem.Cancelled
	}
	if p, ok := errors.AsType[*problem.Error](err); ok && !kept && strings.Contains(p.What, plan.VM.Path) {
		return Result{}, err
	}
	advice := ""
	if kept {
		advice = "finished and partial files are kept in " + plan.Folder.Dir() + "; the same export run again continues with them"
	}
	return Result{}, problem.New(kind, what, err, advice)
}

// run is one Run at work.
type run struct {
	origin  Origin
	plan    Plan
	journal *output.Journal
	tracker *progress.Tracker
	leases  *leases

	mu       sync.Mutex
	warnings []string
}

// guarded is the one place that gives the leases back, whatever happens.
func (r *run) guarded(ctx context.Context) (result Result, err error) {
	err = errors.New("the export panicked")
	defer func() {
		if v := recover(); v != nil {
			r.tracker.Remark(slog.LevelError, "panic", slog.Any("value", v), slog.String("stack", string(debug.Stack())))
			err = fmt.Errorf("internal error: %v", v)
		}
		if cerr := r.leases.closeAll(ctx, err); cerr != nil {
			r.tracker.Remark(slog.LevelWarn, "could not give the lease back", slog.String("error", cerr.Error()))
		}
	}()
	return r.export(ctx)
}

func (r *run) export(ctx context.Context) (Result, error) {
	r.tracker.Enter(progress.Preparing)
	lease, err := r.leases.open(ctx)
	if err != nil {
		return Result{}, err
	}
	stem := output.Stem(r.plan.VM.Name, "vm")
	tasks, err := r.plan.tasks(stem, lease.Items())
	if err != nil {
		return Result{}, err
	}
	names := []string{stem + ".ovf", stem + ".mf"}
	for _, t := range tasks {
		names = append(names, t.name)
	}
	if err := r.journal.Claim(names); err != nil {
		return Result{}, err
	}
	if err := r.checkSpace(tasks); err != nil {
		return Result{}, err
	}
	files, err := r.fetchAll(ctx, lease, tasks)
	if err != nil {
		return Result{}, err
	}
	r.tracker.Enter(progress.Finalizing)
	if err := r.leases.closeAll(ctx, nil); err != nil {
		// The bytes are here and proved; a host that has lost the lease by
		// now lets go of the VM by itself.
		r.warn("the host did not acknowledge the end of the lease", slog.String("error", err.Error()))
	}
	return r.finalize(ctx, stem, files)
}

// fetchAll brings every task's file home, in rounds: what could not be had
// under one lease is tried again under the next.
func (r *run) fetchAll(ctx context.Context, lease Lease, tasks []*task) ([]output.File, error) {
	r.tracker.Enter(progress.Exporting)
	var pending []*task
	for _, t := range tasks {
		t.handle = r.tracker.Add(t.name, t.item.Capacity)
		if file, ok := r.journal.Finished(t.name); ok && file.LeaseKey == t.item.Key {
			t.file = &file
			t.handle.Finish(progress.Kept, file.Size)
			r.tracker.Remark(slog.LevelInfo, "kept finished file", slog.String("file", t.name), slog.Int64("size", file.Size))
			continue
		}
		pending = append(pending, t)
	}
	r.tracker.Remark(slog.LevelInfo, "starting download", slog.Int("files", len(pending)),
		slog.Int64("totalSize", r.tracker.Snapshot().Total))

	stop := r.watch(ctx)
	defer stop()
	for round := 1; len(pending) > 0; round++ {
		if round > 1 {
			if round > maxRounds {
				return nil, fmt.Errorf("%s: gave up after %d leases: %w", pending[0].label(), maxRounds, pending[0].last)
			}
			var err error
			if lease, err = r.leases.replaceAll(ctx, pending[0].last); err != nil {
				return nil, err
			}
		}
		again, err := r.round(ctx, lease, pending)
		if err != nil {
			return nil, err
		}
		pending = again
	}
	files := make([]output.File, len(tasks))
	for i, t := range tasks {
		files[i] = *t.file
	}
	return files, nil
}

// round fetches tasks in parallel and gives those that need another lease.
// When one file cannot be had the others are finished first, so that a later
// run finds them; trouble on this side, such as a full disk, ends all.
func (r *run) round(ctx context.Context, lease Lease, tasks []*task) (again []*task, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	slots := make(chan struct{}, max(1, r.plan.Parallel))
	errs := make([]error, len(tasks))
	var wg sync.WaitGroup
	for i, t := range tasks {
		wg.Go(func() {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			case <-ctx.Done():
				errs[i] = context.Cause(ctx)
				return
			}
			errs[i] = r.fetch(ctx, lease, t)
			if isLocal(errs[i]) {
				cancel(errs[i])
			}
		})
	}
	wg.Wait()
	defer func() {
		for _, t := range tasks {
			err = errors.Join(err, t.stopAwaiting())
		}
	}()
	if err := firstLocal(errs); err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	r.settleAll(ctx, slots, tasks, errs)
	if err := firstLocal(errs); err != nil {
		return nil, err
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	var failed []error
	for i, t := range tasks {
		switch {
		case errs[i] == nil:
		case errors.Is(errs[i], errNextLease):
			again = append(again, t)
		default:
			failed = append(failed, errs[i])
		}
	}
	if len(failed) > 0 {
		return nil, joinErrors(failed)
	}
	return again, nil
}

func firstLocal(errs []error) error {
	for _, e := range errs {
		if isLocal(e) {
			return e
		}
	}
	return nil
}

// joinErrors puts several files' errors on one line and keeps the chain.
func joinErrors(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	return &manyErrors{errs}
}

type manyErrors struct{ errs []error }

func (m *manyErrors) Error() string {
	parts := make([]string, len(m.errs))
	for i, e := range m.errs {
		parts[i] = e.Error()
	}
	return strings.Join(parts, "; ")
}

func (m *manyErrors) Unwrap() []error { return m.errs }

// settleAll proves the files whose hash the manifest did not hold when their
// stream ended: some hosts fill it in when all of a lease has been sent.
func (r *run) settleAll(ctx context.Context, slots chan struct{}, tasks []*task, errs []error) {
	var wg sync.WaitGroup
	for i, t := range tasks {
		if t.awaiting == nil {
			continue
		}
		wg.Go(func() {
			slots <- struct{}{} // as many as streams before: each is busy with a CPU
			defer func() { <-slots }()
			errs[i] = r.settle(ctx, t)
		})
	}
	wg.Wait()
}

// watch keeps the leases' percent at the streams' real position and an eye on
// the free space, until stop is called.
func (r *run) watch(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		warned := false
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				snap := r.tracker.Snapshot()
				r.leases.setPercent(int(snap.Percent))
				warned = warned || r.warnOfSpace(snap)
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// checkSpace compares the free space with what the export is expected to
// take.
func (r *run) checkSpace(tasks []*task) error {
	if r.plan.NeedBytes <= 0 {
		return nil
	}
	free, err := r.plan.Folder.Free()
	if err != nil {
		return err
	}
	need := r.plan.NeedBytes
	for _, t := range tasks {
		if file, ok := r.journal.Finished(t.name); ok {
			need -= file.Size
		}
	}
	if free >= need {
		return nil
	}
	return problem.New(problem.Failed, fmt.Sprintf("export VM %q", r.plan.VM.Path),
		fmt.Errorf("%s has %d bytes free, the disks hold up to %d bytes", r.plan.Folder.Dir(), free, need),
		"free some space, choose another folder, or skip the space check: compressed streams may need less")
}

// lowSpace is below what free space is compared with the rest to come.
const lowSpace = 1 << 30

// warnOfSpace warns when the free space is low and, judged by how far the
// streams have come, less than what is still to be written.
func (r *run) warnOfSpace(snap progress.Snapshot) bool {
	free, err := r.plan.Folder.Free()
	if err != nil || free >= lowSpace || snap.Percent < 1 || snap.Percent >= 100 {
		return false // the write that fails says it better than a failed question
	}
	rest := int64(float64(snap.Received) * (100 - snap.Percent) / snap.Percent)
	if free >= rest {
		return false
	}
	r.warn("free space may not last", slog.String("folder", r.plan.Folder.Dir()),
		slog.Int64("free", free), slog.Int64("estimatedNeed", rest))
	return true
}

func (r *run) warn(message string, attrs ...slog.Attr) {
	var b strings.Builder
	b.WriteString(message)
	for i, a := range attrs {
		if i == 0 {
			b.WriteString(": ")
		} else {
			b.WriteString(", ")
		}
		b.WriteString(a.Value.String())
	}
	r.mu.Lock()
	r.warnings = append(r.warnings, b.String())
	r.mu.Unlock()
	r.tracker.Remark(slog.LevelWarn, message, attrs...)
}

// checkDescriptor holds the descriptor against the files. One that leaves a
// disk out is useless; one that leaves out a file beside the disks is used,
// and said so.
func (r *run) checkDescriptor(d *ovf.Descriptor, files []output.File, sizes map[string]int64) error {
	named := make(map[string]bool, len(d.Files))
	for _, f := range d.Files {
		named[f.Name()] = true
	}
	for _, f := range files {
		if f.Role != output.RoleDisk && !named[f.Name] {
			r.warn("the descriptor does not mention a file", slog.String("file", f.Name))
			delete(sizes, f.Name)
		}
	}
	return d.Check(sizes)
}

// finalize writes the descriptor, the manifest and the receipt.
func (r *run) finalize(ctx context.Context, stem string, files []output.File) (Result, error) {
	named := make([]DescriptorFile, len(files))
	sizes := make(map[string]int64, len(files))
	for i, f := range files {
		named[i] = DescriptorFile{Key: f.LeaseKey, Name: f.Name, Size: f.Size, Capacity: f.Capacity, PopulatedSize: f.PopulatedSize}
		sizes[f.Name] = f.Size
	}
	xml, warnings, err := r.origin.Descriptor(ctx, r.plan.VM.Name, named)
	if err != nil {
		return Result{}, fmt.Errorf("create descriptor: %w", err)
	}
	for _, w := range warnings {
		r.warn("vCenter about the descriptor", slog.String("warning", w))
	}
	if xml, err = ovf.SetFileSizes(xml, sizes); err != nil {
		return Result{}, fmt.Errorf("descriptor from vCenter: %w", err)
	}
	descriptor, err := ovf.ParseDescriptor(xml)
	if err == nil {
		err = r.checkDescriptor(descriptor, files, sizes)
	}
	if err != nil {
		return Result{}, fmt.Errorf("descriptor from vCenter: %w", err)
	}
	ovfFile, err := r.put(stem+".ovf", output.RoleDescriptor, xml)
	if err != nil {
		return Result{}, err
	}
	all := append([]output.File{ovfFile}, files...)
	mf, err := manifestText(all)
	if err != nil {
		return Result{}, err
	}
	mfFile, err := r.put(stem+".mf", output.RoleManifest, mf)
	if err != nil {
		return Result{}, err
	}
	all = append(all, mfFile)

	verified := !slices.ContainsFunc(files, func(f output.File) bool {
		return f.Role == output.RoleDisk && f.Proof != output.ProofHost
	})
	hardware := r.plan.Hardware
	hardware.Removed = r.journal.Removed()
	receipt := output.Receipt{
		Tool: "hyper2kvm", Version: r.plan.Version, Format: "ovf",
		VM: r.plan.VM, Hardware: hardware, Snapshot: r.plan.Snapshot,
		Files: all, Verified: verified, Warnings: r.warnings,
		Started: r.journal.Started(), Completed: time.Now().UTC(),
	}
	if err := r.journal.Complete(receipt); err != nil {
		return Result{}, err
	}
	r.tracker.Remark(slog.LevelInfo, "export is whole", slog.Int("files", len(all)),
		slog.Int64("totalSize", receipt.Size()), slog.Bool("verified", verified))
	return Result{Receipt: receipt, OVF: ovfFile.Name}, nil
}
