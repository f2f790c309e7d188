package lab

import (
	"net/http"
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// soapFailure is what FailSOAP asked for.
type soapFailure struct {
	method string
	left   int
	fault  types.BaseMethodFault // nil closes the connection
}

// FailSOAP makes the next times calls of a method fail, by the name it has in
// the API: "HttpNfcLeaseProgress", "CreateSnapshot_Task". The caller gets the
// fault, or, when that is nil, a connection that closes without an answer. The
// method does not run.
func (l *Lab) FailSOAP(method string, times int, fault types.BaseMethodFault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, &soapFailure{method, times, fault})
}

// fails takes one failure of a method, if there is one.
func (l *Lab) fails(method string) (types.BaseMethodFault, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.failures, func(f *soapFailure) bool { return f.method == method && f.left > 0 })
	if i < 0 {
		return nil, false
	}
	l.failures[i].left--
	return l.failures[i].fault, true
}

// What changes a VM; those that are true cannot be done while a lease is held.
var changes = map[string]bool{
	"ConsolidateVMDisks_Task":      true,
	"CreateSnapshotEx_Task":        false,
	"CreateSnapshot_Task":          false,
	"CloneVM_Task":                 false,
	"Destroy_Task":                 true,
	"MarkAsTemplate":               true,
	"MarkAsVirtualMachine":         true,
	"MigrateVM_Task":               true,
	"PowerOffVM_Task":              false,
	"PowerOnVM_Task":               true,
	"RebootGuest":                  false,
	"ReconfigVM_Task":              true,
	"RelocateVM_Task":              true,
	"RemoveAllSnapshots_Task":      true,
	"RemoveSnapshot_Task":          true,
	"Rename_Task":                  false,
	"ResetVM_Task":                 false,
	"RevertToCurrentSnapshot_Task": true,
	"RevertToSnapshot_Task":        true,
	"ShutdownGuest":                false,
	"StandbyGuest":                 false,
	"SuspendVM_Task":               false,
	"UnregisterVM":                 true,
	"UpgradeVM_Task":               true,
}

// What works without a session. The simulator answers property reads too,
// which a vCenter does not.
var public = []string{
	"Login", "LoginByToken", "LoginExtensionByCertificate", "CloneSession",
	"RetrieveServiceContent", "RetrieveInternalContent",
}

// intercept sees every call before the simulator does. It refuses some, keeps
// book of those that change a VM, and hands those that the simulator does not
// have to the exporter: what a registry's handler returns is overruled once a
// session exists, but the receiver is looked up after it, and may be changed.
func (l *Lab) intercept(ctx *simulator.Context, method *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	if l.closed.Load() {
		panic(http.ErrAbortHandler)
	}
	if fault, ok := l.fails(method.Name); ok {
		if fault == nil {
			panic(http.ErrAbortHandler) // net/http closes the connection
		}
		return nil, fault
	}
	if ctx.Session == nil {
		if slices.Contains(public, method.Name) {
			return nil, nil
		}
		this := method.This
		return nil, &types.NotAuthenticated{NoPermission: types.NoPermission{Object: &this, PrivilegeId: "System.View"}}
	}
	switch method.Name {
	case "ExportVm", "ExportSnapshot", "CreateDescriptor":
		method.This = exporterRef
	case "WaitForUpdatesEx", "WaitForUpdates":
		if pc, ok := ctx.Session.Get(method.This).(*simulator.PropertyCollector); ok {
			l.mu.Lock()
			l.collectors[pc] = struct{}{}
			l.mu.Unlock()
		}
	case "DestroyPropertyCollector":
		if pc, ok := ctx.Session.Get(method.This).(*simulator.PropertyCollector); ok {
			l.mu.Lock()
			delete(l.collectors, pc)
			l.mu.Unlock()
		}
	default:
		return nil, l.change(ctx, method)
	}
	return nil, nil
}

// change notes a call that changes a VM, or refuses it.
func (l *Lab) change(ctx *simulator.Context, method *simulator.Method) types.BaseMethodFault {
	locked, known := changes[method.Name]
	if !known {
		return nil
	}
	ref := method.This
	var snapshot *types.ManagedObjectReference
	switch o := ctx.Map.Get(ref).(type) {
	case *simulator.VirtualMachine:
	case *simulator.VirtualMachineSnapshot:
		s := ref
		snapshot, ref = &s, o.Vm
	default:
		return nil // of a folder, or not there
	}
	v := l.vmOf(ref)
	if locked && l.holds(v, snapshot) {
		return &types.TaskInProgress{Task: types.ManagedObjectReference{Type: "Task", Value: "task-export-" + ref.Value}}
	}
	if method.Name == "ShutdownGuest" || method.Name == "RebootGuest" || method.Name == "StandbyGuest" {
		if sim, ok := ctx.Map.Get(ref).(*simulator.VirtualMachine); ok {
			running := false
			ctx.WithLock(sim, func() {
				running = sim.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn ||
					sim.Guest.ToolsRunningStatus == string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
			})
			if !running {
				return new(types.ToolsUnavailable)
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.actions = append(l.actions, method.Name+" "+v.path)
	return nil
}
