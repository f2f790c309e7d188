package vsphere

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const (
	// updateWait is how long the server may sit on one WaitForUpdatesEx.
	updateWait = 30 * time.Second
	// snapshotTimeout bounds the making of a snapshot: quiescing a busy
	// database takes minutes.
	snapshotTimeout = 15 * time.Minute
	waitPause       = 500 * time.Millisecond
)

// wait calls done with the object's properties whenever they change, until it
// says so, fails, or ctx ends. It survives a lost session and short outages:
// the server's side of a wait is made anew.
func (a *api) wait(ctx context.Context, ref types.ManagedObjectReference, paths []string, done func(map[string]any) (bool, error)) error {
	for failures := 0; ; {
		progressed, err := a.waitOnce(ctx, ref, paths, done)
		var stop *stopError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &stop):
			return stop.err
		case ctx.Err() != nil:
			return ctx.Err()
		case gone(err, ref), errors.Is(err, ErrClosed), isFault[*types.InvalidLogin](err), isFault[*types.NoPermission](err):
			return err
		}
		if progressed {
			failures = 0
		}
		if failures++; failures > maxReads {
			return err
		}
		a.log.Debug("waiting for a vSphere object starts over", slog.String("object", ref.Value), slog.String("error", reason(err).Error()))
		if perr := pause(ctx, waitPause<<(failures-1)); perr != nil {
			return perr
		}
	}
}

// stopError is what the function that is called on changes made of them.
type stopError struct{ err error }

func (e *stopError) Error() string { return e.err.Error() }
func (e *stopError) Unwrap() error { return e.err }

func (a *api) waitOnce(ctx context.Context, ref types.ManagedObjectReference, paths []string, done func(map[string]any) (bool, error)) (progressed bool, err error) {
	// A collector of its own, for filters of the common one would see each
	// other's updates.
	created, err := methods.CreatePropertyCollector(ctx, a.rt, &types.CreatePropertyCollector{This: a.content.PropertyCollector})
	if err != nil {
		return false, err
	}
	collector := created.Returnval
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout/2)
		defer cancel()
		_, derr := methods.DestroyPropertyCollector(ctx, a.rt, &types.DestroyPropertyCollector{This: collector})
		if derr != nil {
			// It ends with the session at the latest.
			a.log.Debug("could not destroy property collector", slog.String("error", reason(derr).Error()))
		}
	}()
	_, err = methods.CreateFilter(ctx, a.rt, &types.CreateFilter{This: collector, Spec: types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: ref}},
		PropSet:   []types.PropertySpec{{Type: ref.Type, PathSet: paths}},
	}})
	if err != nil {
		return false, err
	}
	seconds := int32(updateWait / time.Second)
	req := types.WaitForUpdatesEx{This: collector, Options: &types.WaitOptions{MaxWaitSeconds: &seconds}}
	props := map[string]any{}
	for {
		res, err := methods.WaitForUpdatesEx(ctx, a.rt, &req)
		if err != nil {
			return progressed, err
		}
		progressed = true
		if res.Returnval == nil {
			continue // nothing changed within updateWait
		}
		req.Version = res.Returnval.Version
		if err := apply(props, ref, res.Returnval.FilterSet); err != nil {
			return progressed, err
		}
		if ok, err := done(props); err != nil {
			return progressed, &stopError{err}
		} else if ok {
			return progressed, nil
		}
	}
}

// apply puts changes of ref into props.
func apply(props map[string]any, ref types.ManagedObjectReference, updates []types.PropertyFilterUpdate) error {
	for _, u := range updates {
		for _, o := range u.ObjectSet {
			if o.Obj != ref {
				continue
			}
			if o.Kind == types.ObjectUpdateKindLeave {
				return &taskError{&types.LocalizedMethodFault{Fault: &types.ManagedObjectNotFound{Obj: ref}}}
			}
			for _, m := range o.MissingSet {
				return &taskError{&m.Fault}
			}
			for _, ch := range o.ChangeSet {
				if ch.Val == nil {
					delete(props, ch.Name)
				} else {
					props[ch.Name] = ch.Val
				}
			}
		}
	}
	return nil
}

// waitTask waits for a task's end and gives its result. A task that fails is
// an error that holds its fault.
func (a *api) waitTask(ctx context.Context, task types.ManagedObjectReference) (any, error) {
	var result any
	err := a.wait(ctx, task, []string{"info"}, func(props map[string]any) (bool, error) {
		info := get[types.TaskInfo](props, "info")
		switch info.State {
		case types.TaskInfoStateSuccess:
			result = info.Result
			return true, nil
		case types.TaskInfoStateError:
			if info.Error == nil {
				return false, errors.New("the task failed without saying why")
			}
			return false, &taskError{info.Error}
		}
		return false, nil
	})
	return result, err
}

// Shutdown asks the guest's operating system to shut down and waits until the
// VM is powered off, at most for timeout. It never switches a VM off: without
// running VMware Tools it is an error.
func (c *Client) Shutdown(ctx context.Context, moref string, timeout time.Duration) error {
	what, ref := "shut down VM "+moref, c.vmRef(moref)
	props, err := c.properties(ctx, ref, "runtime.powerState", "guest.toolsRunningStatus")
	if err != nil {
		return failure(what, err)
	}
	switch get[types.VirtualMachinePowerState](props, "runtime.powerState") {
	case types.VirtualMachinePowerStatePoweredOff:
		return nil
	case types.VirtualMachinePowerStateSuspended:
		return problem.New(problem.Conflict, what, errors.New("the VM is suspended"), "resume it first")
	}
	if s := get[string](props, "guest.toolsRunningStatus"); s != string(types.VirtualMachineToolsRunningStatusGuestToolsRunning) {
		return problem.New(problem.Conflict, what, errors.New("VMware Tools are not running in the guest"),
			"shut it down from inside, or export from a snapshot (-snapshot)")
	}
	if _, err := methods.ShutdownGuest(ctx, c.rt, &types.ShutdownGuest{This: ref}); err != nil {
		if f, ok := asFault[*types.InvalidPowerState](err); !ok || f.ExistingState != types.VirtualMachinePowerStatePoweredOff {
			return failure(what, err)
		}
	}
	wctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = c.wait(wctx, ref, []string{"runtime.powerState"}, func(props map[string]any) (bool, error) {
		return get[types.VirtualMachinePowerState](props, "runtime.powerState") == types.VirtualMachinePowerStatePoweredOff, nil
	})
	if err != nil && wctx.Err() != nil && ctx.Err() == nil {
		return problem.New(problem.Conflict, what, fmt.Errorf("it is not powered off after %v", timeout),
			"look at the guest's console; it may wait for somebody")
	}
	return failure(what, err)
}

// RemoveCDROMs removes every CD-ROM drive from a VM that is powered off and
// gives those that were removed.
func (c *Client) RemoveCDROMs(ctx context.Context, moref string) ([]CDROM, error) {
	what, ref := "remove CD-ROM drives of VM "+moref, c.vmRef(moref)
	props, err := c.properties(ctx, ref, "runtime.powerState", "config.hardware.device")
	if err != nil {
		return nil, failure(what, err)
	}
	if s := get[types.VirtualMachinePowerState](props, "runtime.powerState"); s != types.VirtualMachinePowerStatePoweredOff {
		return nil, problem.New(problem.Conflict, what, fmt.Errorf("the VM is %s", s), "shut it down first")
	}
	devices := get[types.ArrayOfVirtualDevice](props, "config.hardware.device").VirtualDevice
	removed := cdroms(devices)
	if len(removed) == 0 {
		return nil, nil
	}
	var spec types.VirtualMachineConfigSpec
	for _, d := range devices {
		if v, ok := d.(*types.VirtualCdrom); ok {
			spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{
				Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: v,
			})
		}
	}
	res, err := methods.ReconfigVM_Task(ctx, c.rt, &types.ReconfigVM_Task{This: ref, Spec: spec})
	if err != nil {
		return nil, failure(what, err)
	}
	if _, err := c.waitTask(ctx, res.Returnval); err != nil {
		return nil, failure(what, err)
	}
	return removed, nil
}

// CreateSnapshot makes a snapshot without memory and gives its managed object
// reference. The guest's file systems are quiesced when VMware Tools run; when
// the guest refuses, the snapshot is made without. A VM with independent disks
// is refused, for they would be missing in it. When ctx ends while the server
// is at work, the snapshot is removed once it is there.
func (c *Client) CreateSnapshot(ctx context.Context, moref, name, description string) (string, error) {
	what, ref := "create snapshot of VM "+moref, c.vmRef(moref)
	props, err := c.properties(ctx, ref, "runtime.powerState", "guest.toolsRunningStatus", "config.hardware.device")
	if err != nil {
		return "", failure(what, err)
	}
	all := disks(get[types.ArrayOfVirtualDevice](props, "config.hardware.device").VirtualDevice)
	if i := slices.IndexFunc(all, func(d Disk) bool { return strings.HasPrefix(d.Mode, "independent") }); i >= 0 {
		return "", problem.New(problem.Conflict, what, fmt.Errorf("%s is independent: a snapshot does not hold it", all[i].Label),
			"shut the VM down and export it without a snapshot")
	}
	quiesce := get[types.VirtualMachinePowerState](props, "runtime.powerState") == types.VirtualMachinePowerStatePoweredOn &&
		get[string](props, "guest.toolsRunningStatus") == string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
	snapshot, err := c.createSnapshot(ctx, ref, name, description, quiesce)
	if err != nil && quiesce && quiesceFailed(err) {
		c.log.Warn("the guest could not be quiesced, making the snapshot without", slog.String("vm", moref),
			slog.String("error", reason(err).Error()))
		snapshot, err = c.createSnapshot(ctx, ref, name, description, false)
	}
	return snapshot, failure(what, err)
}

func quiesceFailed(err error) bool {
	return isFault[*types.FilesystemQuiesceFault](err) || isFault[*types.ApplicationQuiesceFault](err)
}

func (c *Client) createSnapshot(ctx context.Context, vm types.ManagedObjectReference, name, description string, quiesce bool) (string, error) {
	snapshot, err := handover(ctx, c, "snapshot", snapshotTimeout,
		func(ctx context.Context) (string, error) {
			res, err := methods.CreateSnapshot_Task(ctx, c.rt, &types.CreateSnapshot_Task{
				This: vm, Name: name, Description: description, Quiesce: quiesce,
			})
			if err != nil {
				return "", err
			}
			result, err := c.waitTask(ctx, res.Returnval)
			if err != nil {
				return "", err
			}
			made, ok := result.(types.ManagedObjectReference)
			if !ok {
				return "", errors.New("the server did not name the new snapshot")
			}
			return made.Value, nil
		},
		func(ctx context.Context, snapshot string) {
			if err := c.RemoveSnapshot(ctx, snapshot); err != nil {
				c.log.Error("could not remove the snapshot of an export that was cancelled, remove it by hand",
					slog.String("vm", vm.Value), slog.String("snapshot", name), slog.String("error", err.Error()))
			}
		})
	return snapshot, err
}

// settledError is an error after which nothing is left at the server that has
// not been spoken of.
type settledError struct{ error }

func (e *settledError) Unwrap() error { return e.error }

func settled(err error) bool {
	_, ok := errors.AsType[*settledError](err)
	return ok
}

// handover runs take in a goroutine that outlives ctx. When ctx has ended
// before take has, it returns at once, and what take still gets is given to
// drop: a lease or snapshot that nobody knows of must not stay behind. Both have
// d together.
func handover[T any](ctx context.Context, c *Client, name string, d time.Duration, take func(context.Context) (T, error), drop func(context.Context, T)) (T, error) {
	type taken struct {
		value T
		err   error
	}
	result, left := make(chan taken), make(chan struct{})
	var none T
	if ctx.Err() != nil {
		return none, ctx.Err()
	}
	err := c.spawn(ctx, d, func(ctx context.Context) {
		v, err := take(ctx)
		select {
		case result <- taken{v, err}:
		case <-left:
			switch {
			case err == nil:
				drop(ctx, v)
			case !answered(err) && !settled(err):
				c.log.Error("the server did not say what became of a cancelled request, look whether something stayed behind",
					slog.String("request", name), slog.String("error", reason(err).Error()))
			}
		}
	})
	if err != nil {
		return none, err
	}
	select {
	case r := <-result:
		return r.value, r.err
	case <-ctx.Done():
		close(left)
		return none, ctx.Err()
	}
}

// FindSnapshot gives the reference of a VM's snapshot of that name; empty when
// there is none. Of several the first is given, depth first.
func (c *Client) FindSnapshot(ctx context.Context, moref, name string) (string, error) {
	props, err := c.properties(ctx, c.vmRef(moref), "snapshot")
	if err != nil {
		return "", failure("look for a snapshot of VM "+moref, err)
	}
	var find func(trees []types.VirtualMachineSnapshotTree) string
	find = func(trees []types.VirtualMachineSnapshotTree) string {
		for _, t := range trees {
			if t.Name == name {
				return t.Snapshot.Value
			}
			if ref := find(t.ChildSnapshotList); ref != "" {
				return ref
			}
		}
		return ""
	}
	return find(get[types.VirtualMachineSnapshotInfo](props, "snapshot").RootSnapshotList), nil
}

// RemoveSnapshot removes one snapshot, its children not included, and merges
// its disks. A snapshot that is gone already is no error.
func (c *Client) RemoveSnapshot(ctx context.Context, snapshotMoRef string) error {
	what := "remove snapshot " + snapshotMoRef
	ref := types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: snapshotMoRef}
	consolidate := true
	res, err := methods.RemoveSnapshot_Task(ctx, c.rt, &types.RemoveSnapshot_Task{This: ref, Consolidate: &consolidate})
	if gone(err, ref) {
		return nil
	}
	if err != nil {
		return failure(what, err)
	}
	_, err = c.waitTask(ctx, res.Returnval)
	if gone(err, ref) {
		return nil
	}
	return failure(what, err)
}
