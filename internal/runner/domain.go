package runner

import (
	"fmt"

	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/export"
	"github.com/hyper2kvm/hyper2kvm/internal/libvirt"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

// domainOptions reads what a job says of the machine on KVM.
func domainOptions(o models.Options) (libvirt.Options, error) {
	out := libvirt.Options{NVMe: is(o.NVMe)}
	if o.Hardware != nil {
		out.Hardware = libvirt.Hardware(*o.Hardware)
	}
	var err error
	if out.Hardware, err = libvirt.ParseHardware(string(out.Hardware)); err != nil {
		return out, problem.New(problem.Invalid, "read the hardware option", err, "")
	}
	var args []string
	for name, target := range o.Networks {
		args = append(args, name+"="+target)
	}
	if out.NetworkMap, err = libvirt.ParseNetworkMap(args); err != nil {
		return out, problem.New(problem.Invalid, "read the map of networks", err, "map a VMware network to a bridge, or to network:NAME for a network of libvirt")
	}
	return out, nil
}

// Domain is part of export.Origin.
func (s *origin) Domain(disks []export.DomainDisk, nvram string) ([]byte, []string, error) {
	vm := s.vm
	d := libvirt.Domain{
		Name: vm.Name, BIOSUUID: vm.BIOSUUID, InstanceUUID: vm.InstanceUUID, GuestID: vm.GuestID,
		CPUs: vm.CPUs, CoresPerSocket: vm.CoresPerSocket, MemoryMiB: int64(vm.MemoryMB),
		Firmware: libvirt.Firmware(vm.Firmware), SecureBoot: vm.SecureBoot, NVRAM: nvram,
		VideoRAMKiB: vm.VideoRAM >> 10, OtherDevices: vm.OtherDevices,
	}
	for _, c := range vm.CDROMs {
		d.OtherDevices = append(d.OtherDevices, c.Label)
	}
	for i, disk := range disks {
		facts, err := diskFacts(vm, disk.Label, i)
		if err != nil {
			return nil, nil, problem.New(problem.Failed, fmt.Sprintf("describe VM %q for libvirt", vm.Path), err, "")
		}
		d.Disks = append(d.Disks, libvirt.Disk{
			Path: disk.Path, Format: string(disk.Format), Controller: facts.Controller, Bus: facts.Bus, Unit: facts.Unit,
		})
	}
	for _, n := range vm.NICs {
		d.NICs = append(d.NICs, libvirt.NIC{
			// An adapter of a VM that is powered off is never connected; what
			// counts is that it is plugged in when the VM starts.
			Model: n.Type, MAC: n.MAC, Network: n.Network, Connected: n.Connected || n.StartConnected,
		})
	}
	xml, notes, err := libvirt.Build(d, s.domain)
	if err != nil {
		return nil, nil, problem.New(problem.Failed, fmt.Sprintf("describe VM %q for libvirt", vm.Path), err,
			"export it as ovf, and define the domain by hand")
	}
	return xml, notes, nil
}

// diskFacts finds the VM's disk that a lease's item is: by its label, or by
// its place where the lease could not tell.
func diskFacts(vm vsphere.VM, label string, place int) (vsphere.Disk, error) {
	for _, d := range vm.Disks {
		if label != "" && d.Label == label {
			return d, nil
		}
	}
	if place < len(vm.Disks) {
		return vm.Disks[place], nil
	}
	return vsphere.Disk{}, fmt.Errorf("the lease offers more disks than the VM's %d", len(vm.Disks))
}
