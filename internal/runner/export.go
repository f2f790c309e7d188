// Package runner joins a vSphere session to the export pipeline: it finds the
// VM, checks what stands in the way, makes the preparations that were asked
// for, and hands the pipeline its lease. The daemon runs its jobs through it,
// hyper2kvm its exports.
package runner

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/export"
	"github.com/hyper2kvm/hyper2kvm/internal/libvirt"
	"github.com/hyper2kvm/hyper2kvm/internal/output"
	"github.com/hyper2kvm/hyper2kvm/internal/pace"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/progress"
	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

const (
	// tickInterval is how often numbers are reported.
	tickInterval = 250 * time.Millisecond
	// shutdownTimeout is how long a guest may take to shut down.
	shutdownTimeout = 10 * time.Minute
	// cleanupTimeout bounds the removal of a snapshot, which the host may
	// take minutes to consolidate.
	cleanupTimeout = 10 * time.Minute
	// busyPause is the pause between two looks at a busy VM.
	busyPause = 2 * time.Second
	// busyRemark is how often it is said that one waits.
	busyRemark = time.Minute
	// noteTimeout bounds the look for a snapshot that could not be made.
	noteTimeout = 10 * time.Second
	// defaultParallel is how many disks are in transfer at once.
	defaultParallel = 4
)

// Bounds are what an export keeps within. The zero value has none.
type Bounds struct {
	Pace       *pace.Job // streams and bandwidth
	OutputRoot string    // the folder which the output folder must lie below
	// Observe gives what counts the export's dealings with a host; nil is
	// nobody.
	Observe func(host string) Observer
}

// Observer counts what happens with a host over all exports. Its methods must
// not wait.
type Observer interface {
	export.Observer
	Renewed(err error) // a lease was renewed, or could not be
}

// Export exports the VM that def names through the session c and reports to
// sink. The definition's VCenter is not looked at: c is that vCenter. Errors
// are *problem.Error. What was done to the VM is undone, except what was asked
// for: a shut down guest stays off and a removed CD-ROM drive stays out.
//
// When the VM's host is busy with others' exports the error is a
// *pace.HostBusyError, and nothing has been done.
func Export(ctx context.Context, c *vsphere.Client, def models.Definition, bounds Bounds, sink progress.Sink) (result models.Result, err error) {
	started := time.Now()
	tracker := progress.NewTracker(sink)
	tick, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { tracker.Run(tick, tickInterval) })
	defer wg.Wait()
	defer stop()

	if err := checkDefinition(def); err != nil {
		return models.Result{}, err
	}
	tracker.Enter(progress.Discovering)
	summary, err := c.FindVM(ctx, def.VMPath)
	if err != nil {
		return models.Result{}, err
	}
	vm, err := c.InspectVM(ctx, summary.MoRef)
	if err != nil {
		return models.Result{}, err
	}
	tracker.Remark(slog.LevelInfo, "found VM", slog.String("vm", vm.Path), slog.String("power", vm.PowerState),
		slog.Int("disks", len(vm.Disks)))
	identity := output.VM{
		Name: vm.Name, Path: vm.Path, MoRef: vm.MoRef, InstanceUUID: vm.InstanceUUID,
		BIOSUUID: vm.BIOSUUID, Server: serverID(c.About()),
	}
	if err := checkVM(vm, def.Options); err != nil {
		return models.Result{}, err
	}
	parallel := defaultParallel
	if p := def.Options.ParallelDownloads; p != nil {
		parallel = *p
	}
	host := hostKey(c.About(), vm)
	if bounds.Pace != nil {
		leave, err := bounds.Pace.Enter(host, min(parallel, len(vm.Disks)))
		if err != nil {
			return models.Result{}, err
		}
		defer leave()
	}

	tracker.Enter(progress.Preparing)
	folder, err := hold(def.OutputPath, vm, bounds)
	if err != nil {
		return models.Result{}, err
	}
	defer func() {
		if cerr := folder.Close(); cerr != nil {
			tracker.Remark(slog.LevelWarn, "could not give the output folder back", slog.String("error", cerr.Error()))
		}
	}()
	overwrite := is(def.Options.Overwrite)
	if err := folder.Examine(identity, overwrite); err != nil {
		return models.Result{}, err
	}
	if vm, err = cleanUp(ctx, c, folder, identity, vm, tracker); err != nil {
		return models.Result{}, err
	}
	origin, err := prepare(ctx, c, vm, identity, folder, def.Options, tracker)
	if err != nil {
		return models.Result{}, err
	}
	defer func() {
		if cerr := origin.release(ctx); cerr != nil {
			tracker.Remark(slog.LevelError, "could not remove the export's snapshot, remove it by hand",
				slog.String("vm", vm.Path), slog.String("snapshot", origin.snapshotName), slog.String("error", cerr.Error()))
		}
	}()
	domain, err := domainOptions(def.Options)
	if err != nil {
		return models.Result{}, err
	}
	origin.domain, origin.host = domain, host
	if bounds.Observe != nil {
		origin.observer = bounds.Observe(host)
	}
	plan := export.Plan{
		VM: identity, Hardware: hardware(origin.vm, origin.removed), State: origin.state(), Snapshot: origin.snapshot != "",
		Folder: folder, Version: models.Version, Parallel: parallel,
		Overwrite: overwrite, IncludeMedia: is(def.Options.IncludeMedia), Started: started,
		Compress: is(def.Options.Compress), KeepStream: is(def.Options.KeepVMDK), VerifyGrains: is(def.Options.VerifyGrains),
	}
	if f := def.Options.Format; f != nil {
		plan.Format = export.Format(*f)
	}
	if bounds.Pace != nil {
		plan.Pace = bounds.Pace
	}
	if origin.observer != nil {
		plan.Observer = origin.observer
	}
	if !is(def.Options.SkipSpaceCheck) {
		plan.NeedBytes = origin.vm.Committed
	}
	done, err := export.Run(ctx, origin, plan, tracker)
	if err != nil {
		return models.Result{}, err
	}
	result = models.Result{
		VMName: vm.Name, OutputDir: folder.Dir(), OVFPath: folder.Path(done.OVF),
		TotalSize: done.Receipt.Size(), Duration: time.Since(started).Round(time.Millisecond).String(),
		Verified: done.Receipt.Verified, Warnings: done.Receipt.Warnings, Notes: done.Receipt.Notes,
	}
	if done.Domain != "" {
		result.DomainPath = folder.Path(done.Domain)
	}
	for _, f := range done.Receipt.Files {
		result.Files = append(result.Files, folder.Path(f.Name))
	}
	return result, nil
}

func is(b *bool) bool { return b != nil && *b }

// checkDefinition refuses what cannot be done before anything is touched.
func checkDefinition(def models.Definition) error {
	fail := func(why, advice string) error {
		return problem.New(problem.Invalid, fmt.Sprintf("export VM %q", def.VMPath), errors.New(why), advice)
	}
	switch {
	case def.VMPath == "":
		return fail("no VM is named", "give its inventory path, its name or moref:vm-123")
	case def.OutputPath == "":
		return fail("no output folder is named", "give the folder to export into")
	}
	if f := def.Options.Format; f != nil && !slices.Contains([]models.Format{models.OVF, models.OVA, models.QCOW2, models.Raw}, *f) {
		return fail(fmt.Sprintf("format %q is unknown", *f), "use ovf, ova, qcow2 or raw")
	}
	if _, err := domainOptions(def.Options); err != nil {
		return err
	}
	if p := def.Options.ParallelDownloads; p != nil && (*p < 1 || *p > 16) {
		return fail(fmt.Sprintf("%d parallel downloads", *p), "use 1 to 16")
	}
	return nil
}

// checkVM refuses a VM whose export the host would refuse, before anything is
// done to it.
func checkVM(vm vsphere.VM, o models.Options) error {
	what := fmt.Sprintf("export VM %q", vm.Path)
	for _, b := range vm.Blockers {
		if b.PowerState && (is(o.Snapshot) || is(o.Shutdown)) {
			continue
		}
		if b.Media && (is(o.RemoveCDROM) || !b.Certain) {
			continue
		}
		return problem.New(problem.Conflict, what, errors.New(b.What), b.Advice)
	}
	if is(o.RemoveCDROM) && is(o.Snapshot) && !is(o.Shutdown) && vm.PowerState != "poweredOff" && len(vm.CDROMs) > 0 {
		return problem.New(problem.Conflict, what, errors.New("a CD-ROM drive cannot be removed from a running VM"),
			"leave remove_cdrom out, or shut the VM down")
	}
	return nil
}

func serverID(a vsphere.About) string {
	if a.InstanceUUID != "" {
		return a.InstanceUUID
	}
	return a.Host
}

func hold(dir string, vm vsphere.VM, bounds Bounds) (*output.Folder, error) {
	if bounds.OutputRoot == "" {
		return output.Hold(dir, vm.Path)
	}
	return output.HoldBelow(bounds.OutputRoot, dir, vm.Path)
}

// hostKey names the host whose streams an export takes. Hosts that are reached
// directly often call themselves localhost, so that the server is part of it.
func hostKey(about vsphere.About, vm vsphere.VM) string {
	if vm.Host == "" || strings.HasPrefix(vm.Host, "localhost") {
		return about.Host
	}
	return vm.Host
}

func hardware(vm vsphere.VM, removed []string) output.Hardware {
	h := output.Hardware{
		CPUs: vm.CPUs, CoresPerSocket: vm.CoresPerSocket, MemoryMB: vm.MemoryMB,
		Firmware: vm.Firmware, SecureBoot: vm.SecureBoot, GuestID: vm.GuestID, GuestOS: vm.GuestOS,
		HardwareVersion: vm.HardwareVersion, Removed: removed,
	}
	for _, d := range vm.Disks {
		h.Disks = append(h.Disks, output.Disk{Label: d.Label, Controller: d.Controller, Capacity: d.Capacity})
	}
	for _, n := range vm.NICs {
		h.NICs = append(h.NICs, output.NIC{Label: n.Label, Type: n.Type, MAC: n.MAC, Network: n.Network})
	}
	return h
}

// origin is an export.Origin: a VM made ready, and what has to be undone.
type origin struct {
	client       *vsphere.Client
	folder       *output.Folder
	vm           vsphere.VM
	removed      []string
	snapshot     string // moref
	snapshotName string
	domain       libvirt.Options
	host         string // as limits know it
	observer     Observer
}

// cleanUp removes the snapshot that a run which was killed has left, and gives
// the VM as it is then.
func cleanUp(ctx context.Context, c *vsphere.Client, folder *output.Folder, identity output.VM, vm vsphere.VM, tracker *progress.Tracker) (vsphere.VM, error) {
	note, found, err := folder.Note()
	if err != nil || !found || !note.VM.Same(identity) {
		return vm, err
	}
	ref, err := c.FindSnapshot(ctx, vm.MoRef, note.Snapshot)
	if err != nil {
		return vm, err
	}
	if ref != "" {
		tracker.Remark(slog.LevelWarn, "removing the snapshot that an interrupted export left",
			slog.String("vm", vm.Path), slog.String("snapshot", note.Snapshot))
		if err := removeIdle(ctx, c, ref, tracker); err != nil {
			return vm, err
		}
		if vm, err = c.InspectVM(ctx, vm.MoRef); err != nil {
			return vm, err
		}
	}
	return vm, folder.DropNote()
}

// removeIdle removes a snapshot once nothing holds the VM any more: a lease of
// the process that was killed lives on for its timeout.
func removeIdle(ctx context.Context, c *vsphere.Client, ref string, tracker *progress.Tracker) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	var said time.Time
	for {
		err := c.RemoveSnapshot(ctx, ref)
		if !errors.Is(err, vsphere.ErrBusy) {
			return err
		}
		if time.Since(said) > busyRemark {
			said = time.Now()
			tracker.Remark(slog.LevelInfo, "the VM is busy, the snapshot is removed when it is free", slog.String("error", err.Error()))
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(busyPause):
		}
	}
}

// prepare makes the VM ready as the options ask: guest shut down, CD-ROM
// drives removed, snapshot made.
func prepare(ctx context.Context, c *vsphere.Client, vm vsphere.VM, identity output.VM, folder *output.Folder, o models.Options, tracker *progress.Tracker) (*origin, error) {
	s := &origin{client: c, vm: vm, folder: folder}
	changed := false
	if vm.PowerState != "poweredOff" && is(o.Shutdown) {
		tracker.Remark(slog.LevelInfo, "shutting the guest down", slog.String("vm", vm.Path))
		if err := c.Shutdown(ctx, vm.MoRef, shutdownTimeout); err != nil {
			return nil, err
		}
		changed = true
	}
	if is(o.RemoveCDROM) && len(vm.CDROMs) > 0 {
		removed, err := c.RemoveCDROMs(ctx, vm.MoRef)
		if err != nil {
			return nil, err
		}
		for _, d := range removed {
			text := d.Label
			if d.ISO != "" {
				text += " with " + d.ISO
			}
			s.removed = append(s.removed, text)
			tracker.Remark(slog.LevelInfo, "removed CD-ROM drive", slog.String("vm", vm.Path), slog.String("device", text))
		}
		changed = true
	}
	if changed {
		var err error
		if s.vm, err = c.InspectVM(ctx, vm.MoRef); err != nil {
			return nil, err
		}
	}
	if s.vm.PowerState != "poweredOff" && is(o.Snapshot) {
		s.snapshotName = fmt.Sprintf("hyper2kvm %s, process %d", time.Now().UTC().Format("2006-01-02 15:04:05"), os.Getpid())
		tracker.Remark(slog.LevelInfo, "making a snapshot", slog.String("vm", vm.Path), slog.String("snapshot", s.snapshotName))
		// Before it is made: a process that is killed leaves word of it.
		err := folder.PutNote(output.Note{VM: identity, Snapshot: s.snapshotName})
		if err != nil {
			return nil, problem.New(problem.Failed, fmt.Sprintf("export VM %q", vm.Path), err, "")
		}
		s.snapshot, err = c.CreateSnapshot(ctx, vm.MoRef, s.snapshotName, "made for an export, removed at its end")
		if err != nil {
			// Also when it is not known whether it was made.
			return nil, errors.Join(err, s.forget(ctx))
		}
	}
	return s, nil
}

// forget drops the note of a snapshot, unless that is there after all.
func (s *origin) forget(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTimeout)
	defer cancel()
	if ref, err := s.client.FindSnapshot(ctx, s.vm.MoRef, s.snapshotName); err != nil || ref != "" {
		return nil // the next run looks again
	}
	return s.folder.DropNote()
}

// release removes the snapshot, on a context that is alive.
func (s *origin) release(ctx context.Context) error {
	if s.snapshot == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err := s.client.RemoveSnapshot(ctx, s.snapshot); err != nil {
		return err
	}
	return s.folder.DropNote()
}

// state identifies the content of the VM's disks. The content id of a disk
// (VirtualDiskFlatVer2BackingInfo.contentId) changes when it is written after
// it was opened, the change version when the VM is reconfigured. The content
// of a snapshot never comes again, so it has no state.
func (s *origin) state() string {
	if s.snapshot != "" {
		return ""
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q %q\n", s.vm.ChangeVersion, s.vm.InstanceUUID)
	for _, d := range s.vm.Disks {
		fmt.Fprintf(h, "%d %q %d %q\n", d.Key, d.File, d.Capacity, d.ContentID)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// OpenLease is part of export.Origin.
func (s *origin) OpenLease(ctx context.Context) (export.Lease, error) {
	var l *vsphere.Lease
	var err error
	if s.snapshot != "" {
		l, err = s.client.ExportSnapshot(ctx, s.vm.MoRef, s.snapshot)
	} else {
		l, err = s.client.ExportVM(ctx, s.vm.MoRef)
	}
	if p, ok := errors.AsType[*problem.Error](err); ok {
		// vSphere's errors know the VM by its moref only.
		err = problem.New(p.Kind, fmt.Sprintf("export VM %q", s.vm.Path), p.Err, p.Advice)
	}
	if errors.Is(err, vsphere.ErrBusy) {
		return nil, &busyError{err}
	}
	if err != nil {
		return nil, err
	}
	if s.observer != nil {
		l.OnRenew(s.observer.Renewed)
	}
	return &lease{l, s.host, allocated(s.vm.Disks)}, nil
}

// busyError makes vSphere's busy VM the pipeline's.
type busyError struct{ error }

func (e *busyError) Unwrap() error        { return e.error }
func (e *busyError) Is(target error) bool { return target == export.ErrBusy }

// Descriptor is part of export.Origin.
func (s *origin) Descriptor(ctx context.Context, name string, files []export.DescriptorFile) ([]byte, []string, error) {
	p := vsphere.DescriptorParams{Name: name, SnapshotMoRef: s.snapshot}
	for _, f := range files {
		p.Files = append(p.Files, vsphere.DescriptorFile{
			Key: f.Key, Path: f.Name, Size: f.Size, Capacity: f.Capacity, PopulatedSize: f.PopulatedSize,
		})
	}
	d, err := s.client.CreateDescriptor(ctx, s.vm.MoRef, p)
	return d.XML, d.Warnings, err
}
