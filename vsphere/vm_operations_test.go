package vsphere

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

func TestShutdown(t *testing.T) {
	m := simulator.VPX()
	cfg := serve(t, m)
	c := dial(t, cfg)
	ctx := within(t, time.Minute)
	vm := everyVM(m)[0]
	err := c.Shutdown(ctx, vm.Self.Value, time.Minute)
	if problem.KindOf(err) != problem.Conflict || !strings.Contains(err.Error(), "VMware Tools") {
		t.Errorf("without tools: %v", err)
	}
	if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
		t.Fatal("switched off")
	}
	vm.Guest.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)

	// A guest that takes its time: longer than it is given, then not.
	slow := &holdShutdown{RoundTripper: c.rt}
	c.rt = slow
	err = c.Shutdown(ctx, vm.Self.Value, 300*time.Millisecond)
	if problem.KindOf(err) != problem.Conflict || !strings.Contains(err.Error(), "300ms") {
		t.Errorf("slow guest: %v", err)
	}
	c.rt = slow.RoundTripper
	expire(t, cfg, c)
	if err := c.Shutdown(ctx, vm.Self.Value, time.Minute); err != nil {
		t.Error(err)
	}
	if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		t.Error("still on")
	}
	if err := c.Shutdown(ctx, vm.Self.Value, time.Minute); err != nil {
		t.Errorf("off already: %v", err)
	}
	vm.Runtime.PowerState = types.VirtualMachinePowerStateSuspended
	if err := c.Shutdown(ctx, vm.Self.Value, time.Minute); problem.KindOf(err) != problem.Conflict {
		t.Errorf("suspended: %v", err)
	}
}

// holdShutdown swallows ShutdownGuest.
type holdShutdown struct{ soap.RoundTripper }

func (h *holdShutdown) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	if b, ok := res.(*methods.ShutdownGuestBody); ok {
		b.Res = &types.ShutdownGuestResponse{}
		return nil
	}
	return h.RoundTripper.RoundTrip(ctx, req, res)
}

// lose makes the server forget the session while a wait is on, once.
type lose struct {
	soap.RoundTripper
	kill func()
	done bool
}

func (l *lose) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	if _, ok := req.(*methods.WaitForUpdatesExBody); ok && !l.done {
		l.done = true
		l.kill()
	}
	return l.RoundTripper.RoundTrip(ctx, req, res)
}

func TestWaitSurvivesSession(t *testing.T) {
	m := simulator.VPX()
	cfg := serve(t, m)
	c := dial(t, cfg)
	ctx := within(t, time.Minute)
	vm := everyVM(m)[0]
	raw := c.rt
	l := &lose{RoundTripper: raw}
	l.kill = func() {
		own := *c.content.SessionManager
		props, err := (&api{rt: raw, content: c.content, log: c.log}).properties(ctx, own, "currentSession")
		if err != nil {
			t.Error(err)
			return
		}
		killer, err := Connect(ctx, cfg, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer killer.Close(ctx)
		key := get[types.UserSession](props, "currentSession").Key
		if _, err := methods.TerminateSession(ctx, killer.rt, &types.TerminateSession{This: own, SessionId: []string{key}}); err != nil {
			t.Error(err)
		}
	}
	c.rt = l
	snapshot, err := c.CreateSnapshot(ctx, vm.Self.Value, "s", "")
	if err != nil {
		t.Fatal(err)
	}
	if !l.done || vm.Snapshot == nil || vm.Snapshot.CurrentSnapshot.Value != snapshot {
		t.Errorf("lost %v, snapshot %q", l.done, snapshot)
	}
	if err := c.RemoveSnapshot(ctx, snapshot); err != nil {
		t.Error(err)
	}
}

func TestWaitForWhatIsGone(t *testing.T) {
	c := dial(t, serve(t, simulator.VPX()))
	ref := types.ManagedObjectReference{Type: "Task", Value: "task-none"}
	if _, err := c.waitTask(within(t, time.Minute), ref); !gone(err, ref) {
		t.Errorf("got %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err := c.wait(short, c.content.RootFolder, []string{"name"}, func(map[string]any) (bool, error) { return false, nil })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	own := errors.New("enough")
	err = c.wait(t.Context(), c.content.RootFolder, []string{"name"}, func(map[string]any) (bool, error) { return false, own })
	if !errors.Is(err, own) {
		t.Errorf("got %v", err)
	}
}

func TestRemoveCDROMs(t *testing.T) {
	m := simulator.VPX()
	c := dial(t, serve(t, m))
	ctx := within(t, time.Minute)
	vm := everyVM(m)[0]
	if _, err := c.RemoveCDROMs(ctx, vm.Self.Value); problem.KindOf(err) != problem.Conflict {
		t.Errorf("powered on: %v", err)
	}
	vm.Runtime.PowerState = types.VirtualMachinePowerStatePoweredOff
	removed, err := c.RemoveCDROMs(ctx, vm.Self.Value)
	if err != nil || len(removed) != 1 || removed[0].Key == 0 || removed[0].Label == "" {
		t.Errorf("removed %+v, %v", removed, err)
	}
	after, err := c.InspectVM(ctx, vm.Self.Value)
	if err != nil || len(after.CDROMs) != 0 || len(after.Disks) != 1 {
		t.Errorf("left %+v, %+v, %v", after.CDROMs, after.Disks, err)
	}
	if removed, err := c.RemoveCDROMs(ctx, vm.Self.Value); err != nil || removed != nil {
		t.Errorf("again: %+v, %v", removed, err)
	}
}

func TestSnapshot(t *testing.T) {
	m := simulator.VPX()
	c := dial(t, serve(t, m))
	ctx := within(t, time.Minute)
	vm := everyVM(m)[0]
	var names []string
	keep, err := c.CreateSnapshot(ctx, vm.Self.Value, "parent", "")
	if err != nil {
		t.Fatal(err)
	}
	mine, err := c.CreateSnapshot(ctx, vm.Self.Value, "mine", "")
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.InspectVM(ctx, vm.Self.Value)
	if names = got.Snapshots; err != nil || strings.Join(names, ",") != "parent,mine" || !got.HasSnapshots {
		t.Errorf("snapshots %v, %v", names, err)
	}
	for range 2 { // the second time it is gone already
		if err := c.RemoveSnapshot(ctx, mine); err != nil {
			t.Error(err)
		}
	}
	if err := c.RemoveSnapshot(ctx, keep); err != nil {
		t.Error(err)
	}
	for _, d := range vm.Config.Hardware.Device {
		if v, ok := d.(*types.VirtualDisk); ok {
			v.Backing.(*types.VirtualDiskFlatVer2BackingInfo).DiskMode = "independent_persistent"
		}
	}
	if _, err := c.CreateSnapshot(ctx, vm.Self.Value, "s", ""); problem.KindOf(err) != problem.Conflict || !strings.Contains(err.Error(), "independent") {
		t.Errorf("independent disk: %v", err)
	}
}

// afterTask tells when the request for a snapshot has been answered.
type afterTask struct {
	soap.RoundTripper
	cancel context.CancelFunc
}

func (a *afterTask) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	err := a.RoundTripper.RoundTrip(ctx, req, res)
	if _, ok := req.(*methods.CreateSnapshot_TaskBody); ok {
		a.cancel()
	}
	return err
}

func TestCancelledSnapshotIsRemoved(t *testing.T) {
	m := simulator.VPX()
	cfg := serve(t, m)
	c, err := Connect(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	vm := everyVM(m)[0]
	ctx, cancel := context.WithCancel(t.Context())
	c.rt = &afterTask{c.rt, cancel}
	if _, err := c.CreateSnapshot(ctx, vm.Self.Value, "s", ""); problem.KindOf(err) != problem.Cancelled {
		t.Errorf("got %v", err)
	}
	if err := c.Close(t.Context()); err != nil { // waits for the clean-up
		t.Error(err)
	}
	if vm.Snapshot != nil {
		t.Errorf("left behind: %+v", vm.Snapshot.RootSnapshotList)
	}
}
