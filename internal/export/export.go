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
	"strings"
	"sync"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/output"
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
	// Allocated is what a disk takes on the source, in bytes, 0 while unknown.
	// It weighs the disks against each other in what is said of the whole.
	Allocated int64
	Host      string // names whose stream it is, for Pace
	Source    stream.Source
}

// weight is how much work an item is, 0 when that is unknown.
func (i Item) weight() int64 {
	if i.Role != output.RoleDisk {
		return max(1, i.Size)
	}
	if i.Allocated <= 0 || i.Capacity <= 0 {
		return 0
	}
	return min(i.Allocated, i.Capacity)
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

// DomainDisk is one disk's image as the libvirt domain shall name it.
type DomainDisk struct {
	Key, Label string // Item's
	Path       string // absolute
	Format     Format
}

// Origin is the VM to export.
type Origin interface {
	OpenLease(ctx context.Context) (Lease, error)
	// Descriptor asks for the OVF envelope that names these files.
	Descriptor(ctx context.Context, name string, files []DescriptorFile) (xml []byte, warnings []string, err error)
	// Domain describes the VM as a libvirt domain with these disks, which are
	// in the lease's order. Nvram is the name of the file of UEFI variables,
	// empty when there is none. Notes are sentences about what could not be
	// carried over.
	Domain(disks []DomainDisk, nvram string) (xml []byte, notes []string, err error)
}

// Format is what an export leaves.
type Format string

// The formats.
const (
	OVF   Format = "ovf"   // the host's streams, a descriptor and a manifest
	OVA   Format = "ova"   // the same in one archive
	QCOW2 Format = "qcow2" // images made of the streams, and a libvirt domain
	Raw   Format = "raw"
)

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
	Format       Format // empty is OVF
	// Compress keeps what the host compressed compressed, in qcow2.
	Compress bool
	// KeepStream stores the streams beside the images made of them.
	KeepStream bool
	// VerifyGrains inflates and checks every grain, also where a host's hash
	// proves the stream.
	VerifyGrains bool
	// NeedBytes is an estimate of the space the export takes; 0 when unknown.
	NeedBytes int64
	// Started is when the work on this VM began.
	Started time.Time
	Retry   stream.Options
	// Pace holds the export's streams back; nil does not.
	Pace Pace
	// Observer hears what is worth counting; nil is nobody.
	Observer Observer
}

// Observer counts what happens over all exports. Its methods are called by
// several goroutines at once and must not wait.
type Observer interface {
	Took(n int)          // n bytes were read from the host
	Retried()            // a transfer is tried again
	Proved(proof string) // a file is whole; see output.Proof
	Damaged()            // a stream's bytes were not what the host or they themselves say
}

// nobody is the Observer that counts nothing.
type nobody struct{}

func (nobody) Took(int)      {}
func (nobody) Retried()      {}
func (nobody) Proved(string) {}
func (nobody) Damaged()      {}

// Pace bounds what an export takes, beside others, from hosts. Its methods are
// called by several goroutines at once and end with an error when ctx does.
type Pace interface {
	// Acquire waits until a stream from host may begin. Release is called at
	// its end, perhaps more than once.
	Acquire(ctx context.Context, host string) (release func(), err error)
	// Wait accounts for n bytes that were taken and waits until more may be.
	Wait(ctx context.Context, n int) error
}

// converts reports whether disks become images.
func (p Plan) converts() bool { return p.Format == QCOW2 || p.Format == Raw }

// Result is what an export left behind.
type Result struct {
	Receipt output.Receipt
	OVF     string // name of the descriptor, or of the archive that holds it
	Domain  string // name of the libvirt domain; empty unless disks became images
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
	if plan.Format == "" {
		plan.Format = OVF
	}
	if plan.Observer == nil {
		plan.Observer = nobody{}
	}
	if plan.State != "" {
		// Files of another format are of no use to this one.
		plan.State += " " + string(plan.Format)
	}
	journal, err := plan.Folder.Begin(plan.VM, plan.State, plan.Hardware.Removed, plan.Overwrite)
	if err != nil {
		return Result{}, err
	}
	r := &run{origin: origin, plan: plan, journal: journal, tracker: tracker, leases: newLeases(origin)}
	r.leases.onBusy = func(err error, wait time.Duration) {
		tracker.Remark(slog.LevelWarn, "the VM is busy, it is asked again", slog.Duration("wait", wait.Round(100*time.Millisecond)), slog.String("error", err.Error()))
	}
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
	switch {
	case kept && plan.converts() && !plan.KeepStream:
		advice = "finished files are kept in " + plan.Folder.Dir() + "; the same export run again keeps them, and begins the other disks anew"
	case kept:
		advice = "finished and partial files are kept in " + plan.Folder.Dir() + "; the same export run again continues with them"
	case cancelled:
		advice = "no file was finished, and nothing is left in " + plan.Folder.Dir() + "; the same export run again begins anew"
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
	archive *archive // nil unless the plan's format is OVA

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
		if r.archive != nil {
			err = errors.Join(err, r.archive.partial.Close())
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
	inner := stem // of the files' names
	if r.plan.Format == OVA {
		inner = archiveStem(stem)
	}
	tasks, err := r.plan.tasks(inner, lease.Items())
	if err != nil {
		return Result{}, err
	}
	if err := r.journal.Claim(r.names(stem, tasks)); err != nil {
		return Result{}, err
	}
	if r.plan.converts() {
		// What cannot be described should be known before hours of transfer.
		if _, _, err := r.origin.Domain(r.domainDisks(tasks), ""); err != nil {
			return Result{}, err
		}
	}
	if err := r.checkSpace(tasks); err != nil {
		return Result{}, err
	}
	if r.plan.Format == OVA {
		if tasks, err = r.openArchive(ctx, stem, inner, tasks); err != nil {
			return Result{}, err
		}
	}
	if err := r.fetchAll(ctx, lease, tasks); err != nil {
		return Result{}, err
	}
	r.tracker.Enter(progress.Finalizing)
	if err := r.leases.closeAll(ctx, nil); err != nil {
		// The bytes are here and proved; a host that has lost the lease by
		// now lets go of the VM by itself.
		r.warn("the host did not acknowledge the end of the lease", slog.String("error", err.Error()))
	}
	return r.finalize(ctx, stem, inner, tasks)
}

// names are the files that the export will leave in the folder.
func (r *run) names(stem string, tasks []*task) []string {
	if r.plan.Format == OVA {
		return []string{stem + ".ova"}
	}
	names := []string{stem + ".ovf"}
	if r.plan.converts() {
		names = append(names, stem+".xml")
	}
	if !r.plan.converts() || r.plan.KeepStream {
		names = append(names, stem+".mf")
	}
	for _, t := range tasks {
		names = append(names, t.names(r.plan)...)
	}
	return names
}

// fetchAll brings every task's file home, in rounds: what could not be had
// under one lease is tried again under the next.
func (r *run) fetchAll(ctx context.Context, lease Lease, tasks []*task) error {
	r.tracker.Enter(progress.Exporting)
	var pending []*task
	for _, t := range tasks {
		t.handle = r.tracker.Add(t.name, t.item.Capacity)
		t.handle.Weigh(t.item.weight())
		if r.finished(t) && (r.archive == nil || len(pending) == 0) {
			t.handle.Finish(progress.Kept, streamOf(t.files[0]).Size)
			r.tracker.Remark(slog.LevelInfo, "kept finished file", slog.String("file", t.name), slog.Int64("size", t.files[0].Size))
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
				return fmt.Errorf("%s: gave up after %d leases: %w", pending[0].label(), maxRounds, pending[0].last)
			}
			var err error
			if lease, err = r.leases.replaceAll(ctx, pending[0].last); err != nil {
				return err
			}
		}
		again, err := r.round(ctx, lease, pending)
		if err != nil {
			return err
		}
		pending = again
	}
	return nil
}

// finished reports whether an earlier run has finished all files of a task.
func (r *run) finished(t *task) bool {
	var files []output.File
	for _, name := range t.names(r.plan) {
		file, ok := r.journal.Finished(name)
		if !ok || file.LeaseKey != t.item.Key || (file.Archive != "") != (r.archive != nil) {
			return false
		}
		files = append(files, file)
	}
	t.files = files
	return true
}

// round fetches tasks in parallel and gives those that need another lease.
// When one file cannot be had the others are finished first, so that a later
// run finds them; trouble on this side, such as a full disk, ends all.
func (r *run) round(ctx context.Context, lease Lease, tasks []*task) (again []*task, err error) {
	if r.archive != nil {
		return r.inOrder(ctx, lease, tasks)
	}
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
		if r.finished(t) {
			for _, file := range t.files {
				need -= file.Size
			}
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
