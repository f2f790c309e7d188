package lab

import (
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// CreateDescriptor writes the OVF descriptor of a VM, or of one of its
// snapshots when that is given: without it the VM's present hardware is shown.
func (e *exporter) CreateDescriptor(ctx *simulator.Context, req *types.CreateDescriptor) soap.HasFault {
	body := new(methods.CreateDescriptorBody)
	sim, ok := ctx.Map.Get(req.Obj).(*simulator.VirtualMachine)
	if !ok {
		body.Fault_ = simulator.Fault("", &types.ManagedObjectNotFound{Obj: req.Obj})
		return body
	}
	shown := &simulator.VirtualMachine{VirtualMachine: mo.VirtualMachine{}}
	var config types.VirtualMachineConfigInfo
	ctx.WithLock(sim, func() {
		shown.Self, shown.Name, config = sim.Self, sim.Name, *sim.Config
		config.Hardware.Device = slices.Clone(config.Hardware.Device)
	})
	if req.Cdp.Snapshot != nil {
		snapshot, ok := ctx.Map.Get(*req.Cdp.Snapshot).(*simulator.VirtualMachineSnapshot)
		if !ok || snapshot.Vm != req.Obj {
			body.Fault_ = simulator.Fault("", &types.ManagedObjectNotFound{Obj: *req.Cdp.Snapshot})
			return body
		}
		config = snapshot.Config
		config.Hardware.Device = slices.DeleteFunc(slices.Clone(config.Hardware.Device), func(d types.BaseVirtualDevice) bool {
			b, flat := d.GetVirtualDevice().Backing.(*types.VirtualDiskFlatVer2BackingInfo)
			return flat && strings.HasPrefix(b.DiskMode, "independent")
		})
	}
	shown.Config = &config
	body.Res = &types.CreateDescriptorResponse{Returnval: types.OvfCreateDescriptorResult{
		OvfDescriptor: envelope(shown, req.Cdp), IncludeImageFiles: req.Cdp.IncludeImageFiles,
	}}
	return body
}

// diskKey is the last part of the key of a VM's n-th disk.
func diskKey(machine *simulator.VirtualMachine, n int) string {
	all := machine.Config.Hardware.Device
	for _, d := range all {
		if _, ok := d.(*types.VirtualDisk); ok {
			if n == 0 {
				return deviceKey(all, d)
			}
			n--
		}
	}
	return ""
}
