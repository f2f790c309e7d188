package vsphere

import (
	"fmt"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

// typeName is the API name of a device's type.
func typeName(d any) string {
	t := reflect.TypeOf(d)
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil {
		return ""
	}
	return t.Name()
}

func label(d *types.VirtualDevice, fallback string) string {
	if d.DeviceInfo != nil {
		if desc := d.DeviceInfo.GetDescription(); desc != nil && desc.Label != "" {
			return desc.Label
		}
	}
	return fallback
}

func unit(d *types.VirtualDevice) int {
	if d.UnitNumber == nil {
		return 0
	}
	return int(*d.UnitNumber)
}

func connected(d *types.VirtualDevice) bool { return d.Connectable != nil && d.Connectable.Connected }

// controllers gives the controllers by key.
func controllers(devices []types.BaseVirtualDevice) map[int32]Controller {
	m := map[int32]Controller{}
	for _, d := range devices {
		if b, ok := d.(types.BaseVirtualController); ok {
			c := b.GetVirtualController()
			m[c.Key] = Controller{Key: c.Key, Label: label(&c.VirtualDevice, typeName(d)), Type: typeName(d), Bus: int(c.BusNumber)}
		}
	}
	return m
}

// disks gives the virtual disks in the order of the hardware list.
func disks(devices []types.BaseVirtualDevice) []Disk {
	by := controllers(devices)
	var out []Disk
	for _, d := range devices {
		v, ok := d.(*types.VirtualDisk)
		if !ok {
			continue
		}
		c := by[v.ControllerKey]
		disk := Disk{
			Key: v.Key, Label: label(&v.VirtualDevice, fmt.Sprintf("disk %d", v.Key)),
			Controller: c.Type, Bus: c.Bus, Unit: unit(&v.VirtualDevice), Capacity: v.CapacityInBytes,
		}
		if disk.Capacity == 0 {
			disk.Capacity = v.CapacityInKB << 10 // before vSphere 5.5
		}
		if b, ok := v.Backing.(types.BaseVirtualDeviceFileBackingInfo); ok {
			disk.File = b.GetVirtualDeviceFileBackingInfo().FileName
			disk.Datastore = datastoreOf(disk.File)
		}
		switch b := v.Backing.(type) {
		case *types.VirtualDiskFlatVer2BackingInfo:
			disk.Mode, disk.ContentID = b.DiskMode, b.ContentId
			disk.Thin = b.ThinProvisioned != nil && *b.ThinProvisioned
		case *types.VirtualDiskSeSparseBackingInfo:
			disk.Mode, disk.ContentID, disk.Thin = b.DiskMode, b.ContentId, true
		case *types.VirtualDiskSparseVer2BackingInfo:
			disk.Mode, disk.ContentID, disk.Thin = b.DiskMode, b.ContentId, true
		case *types.VirtualDiskFlatVer1BackingInfo:
			disk.Mode = b.DiskMode
		case *types.VirtualDiskSparseVer1BackingInfo:
			disk.Mode, disk.Thin = b.DiskMode, true
		case *types.VirtualDiskLocalPMemBackingInfo:
			disk.Mode = b.DiskMode
		case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
			disk.Mode, disk.ContentID, disk.RDM = b.DiskMode, b.ContentId, true
		case *types.VirtualDiskRawDiskVer2BackingInfo, *types.VirtualDiskPartitionedRawDiskVer2BackingInfo:
			disk.RDM = true
		}
		out = append(out, disk)
	}
	return out
}

// allocated gives by device key what the extents of each disk take on the
// datastore, those of the snapshots it is based on included.
func allocated(layout types.VirtualMachineFileLayoutEx) map[int32]int64 {
	extents := map[int32]int64{}
	for _, f := range layout.File {
		if f.Type == string(types.VirtualMachineFileLayoutExFileTypeDiskExtent) {
			extents[f.Key] = max(0, f.Size)
		}
	}
	used := map[int32]int64{}
	for _, d := range layout.Disk {
		for _, unit := range d.Chain {
			for _, key := range unit.FileKey {
				if sum := used[d.Key] + extents[key]; sum > 0 {
					used[d.Key] = sum
				}
			}
		}
	}
	return used
}

// datastoreOf takes the name out of "[name] folder/file".
func datastoreOf(file string) string {
	rest, ok := strings.CutPrefix(file, "[")
	if !ok {
		return ""
	}
	name, _, ok := strings.Cut(rest, "]")
	if !ok {
		return ""
	}
	return name
}

func cdroms(devices []types.BaseVirtualDevice) []CDROM {
	var out []CDROM
	for _, d := range devices {
		v, ok := d.(*types.VirtualCdrom)
		if !ok {
			continue
		}
		cd := CDROM{Key: v.Key, Label: label(&v.VirtualDevice, fmt.Sprintf("CD-ROM drive %d", v.Key)), Connected: connected(&v.VirtualDevice)}
		if iso, ok := v.Backing.(*types.VirtualCdromIsoBackingInfo); ok {
			cd.ISO = iso.FileName
		}
		out = append(out, cd)
	}
	return out
}

// readDevices fills in the parts of vm that come from its hardware list.
func readDevices(vm *VM, devices []types.BaseVirtualDevice, inv *inventory, portgroups map[string]string) {
	vm.Disks = disks(devices)
	vm.CDROMs = cdroms(devices)
	used := map[string]bool{}
	for _, d := range vm.Disks {
		used[onBus(d.Controller, d.Bus)] = true
	}
	for _, d := range devices {
		if b, ok := d.(types.BaseVirtualController); ok {
			c := controllers(devices)[b.GetVirtualController().Key]
			if _, scsi := d.(types.BaseVirtualSCSIController); scsi || used[onBus(c.Type, c.Bus)] {
				vm.Controllers = append(vm.Controllers, c)
			}
		}
		switch v := d.(type) {
		case *types.VirtualDisk, *types.VirtualCdrom, types.BaseVirtualController,
			*types.VirtualKeyboard, *types.VirtualPointingDevice, *types.VirtualMachineVMCIDevice:
		case *types.VirtualMachineVideoCard:
			vm.VideoRAM = v.VideoRamSizeInKB << 10
		case *types.VirtualTPM:
			vm.HasTPM = true
		case types.BaseVirtualEthernetCard:
			e := v.GetVirtualEthernetCard()
			vm.NICs = append(vm.NICs, NIC{
				Label: label(&e.VirtualDevice, fmt.Sprintf("network adapter %d", e.Key)),
				Type:  strings.ToLower(strings.TrimPrefix(typeName(d), "Virtual")),
				MAC:   e.MacAddress, Network: network(e.Backing, inv, portgroups), Connected: connected(&e.VirtualDevice),
				StartConnected: e.Connectable != nil && e.Connectable.StartConnected,
			})
		default:
			other := d.GetVirtualDevice()
			vm.OtherDevices = append(vm.OtherDevices, label(other, fmt.Sprintf("%s %d", typeName(d), other.Key)))
		}
	}
}

func onBus(kind string, bus int) string { return kind + strconv.Itoa(bus) }

func network(backing types.BaseVirtualDeviceBackingInfo, inv *inventory, portgroups map[string]string) string {
	switch b := backing.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		if b.Network != nil {
			if n := inv.nodes[*b.Network].name; n != "" {
				return unescapeName(n)
			}
		}
		return unescapeName(b.DeviceName)
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		if n := portgroups[b.Port.PortgroupKey]; n != "" {
			return n
		}
		return b.Port.PortgroupKey
	case *types.VirtualEthernetCardOpaqueNetworkBackingInfo:
		return b.OpaqueNetworkId
	}
	return ""
}

// blockers says what stands in the way of an export, the certain things first.
func blockers(vm VM, connection types.VirtualMachineConnectionState, devices []types.BaseVirtualDevice, datastores map[types.ManagedObjectReference]bool) []Blocker {
	var out []Blocker
	add := func(what, advice string) { out = append(out, Blocker{What: what, Advice: advice, Certain: true}) }
	switch connection {
	case "", types.VirtualMachineConnectionStateConnected:
	default:
		add("the VM is "+string(connection), "its files or its host cannot be reached: bring them back first")
	}
	if vm.Template {
		add("it is a template", "convert it to a virtual machine, or clone one from it and export that")
	}
	if vm.Encrypted {
		add("it is encrypted", "decrypt the VM (change its storage policy) first")
	}
	if vm.HasTPM {
		add("it has a virtual TPM", "remove the TPM device first, with the guest's recovery keys at hand")
	}
	for _, d := range vm.Disks {
		if d.RDM {
			add(d.Label+" is a raw device mapping", "convert it to a VMDK by storage migration, or detach it")
		}
	}
	for _, d := range devices {
		if v, ok := d.(*types.VirtualDisk); ok && !exportable(v.Backing) {
			add(label(&v.VirtualDevice, "a disk")+" has a backing that cannot be exported ("+typeName(v.Backing)+")", "detach it, or move it to a VMFS, NFS or vSAN datastore")
		}
	}
	switch vm.PowerState {
	case string(types.VirtualMachinePowerStatePoweredOn):
		out = append(out, Blocker{
			What: "the VM is powered on", Advice: "shut it down (-shutdown), or export from a snapshot (-snapshot)",
			PowerState: true, Certain: true,
		})
	case string(types.VirtualMachinePowerStateSuspended):
		out = append(out, Blocker{
			What: "the VM is suspended", Advice: "resume it and shut it down, or export from a snapshot (-snapshot)",
			PowerState: true, Certain: true,
		})
	}
	for _, d := range devices {
		v, ok := d.(*types.VirtualCdrom)
		if !ok {
			continue
		}
		iso, ok := v.Backing.(*types.VirtualCdromIsoBackingInfo)
		if !ok {
			continue
		}
		lost := false
		if iso.Datastore != nil {
			accessible, known := datastores[*iso.Datastore]
			lost = known && !accessible
		}
		b := Blocker{
			What:   fmt.Sprintf("%s holds the image %s; if that file is gone, the host refuses the export", label(&v.VirtualDevice, "a CD-ROM drive"), iso.FileName),
			Advice: "remove the drive (-remove-cdrom; remove_cdrom in a job file) if the export fails", Media: true,
		}
		if lost {
			b.What = fmt.Sprintf("%s holds the image %s on a datastore that cannot be reached", label(&v.VirtualDevice, "a CD-ROM drive"), iso.FileName)
			b.Advice, b.Certain = "remove the drive (-remove-cdrom; remove_cdrom in a job file)", true
		}
		out = append(out, b)
	}
	return out
}

// exportable is false for backings that ExportVm answers with a fault, other
// than raw device mappings, which are named as such.
func exportable(backing types.BaseVirtualDeviceBackingInfo) bool {
	switch backing.(type) {
	case nil, *types.VirtualDiskLocalPMemBackingInfo:
		return false
	}
	return true
}

// deviceKey is the end of HttpNfcLeaseDeviceUrl.key: the controller's type, its
// bus number, and the unit number of the device on it.
var deviceKey = regexp.MustCompile(`^(.*[^0-9])([0-9]{1,9}):([0-9]{1,9})$`)

// locate gives the index of the disk that a device URL's key means, or -1. The
// key looks like /vm-12/VirtualLsiLogicController0:1.
func locate(all []Disk, key string) int {
	m := deviceKey.FindStringSubmatch(path.Base(key))
	if m == nil {
		return -1
	}
	bus, err := strconv.Atoi(m[2])
	if err != nil {
		return -1
	}
	on, err := strconv.Atoi(m[3])
	if err != nil {
		return -1
	}
	return slices.IndexFunc(all, func(d Disk) bool {
		return d.Bus == bus && d.Unit == on && strings.EqualFold(d.Controller, m[1])
	})
}

// assign gives for each device URL the index of its disk, or -1. A disk is
// given once. What the keys do not tell is told by the order when exactly as
// many disks as URLs of disks are left, which a host keeps.
func assign(all []Disk, urls []types.HttpNfcLeaseDeviceUrl) []int {
	out := make([]int, len(urls))
	taken := make([]bool, len(all))
	var left []int
	for i, u := range urls {
		out[i] = -1
		n := locate(all, u.Key)
		if n < 0 && u.ImportKey != "" {
			n = locate(all, u.ImportKey)
		}
		switch {
		case n >= 0 && !taken[n]:
			out[i], taken[n] = n, true
		case u.Disk != nil && *u.Disk:
			left = append(left, i)
		}
	}
	var free []int
	for n, t := range taken {
		if !t {
			free = append(free, n)
		}
	}
	if len(left) == len(free) {
		for k, i := range left {
			out[i] = free[k]
		}
	}
	return out
}

// classifyItem says what a device URL leads to. disk is whether its key named
// one of the VM's disks.
func classifyItem(u types.HttpNfcLeaseDeviceUrl, disk bool) ItemKind {
	ext := strings.ToLower(path.Ext(u.TargetId))
	if ext == "" {
		ext = strings.ToLower(path.Ext(strings.SplitN(u.Url, "?", 2)[0]))
	}
	switch {
	case u.Disk != nil && *u.Disk:
		return ItemDisk
	case ext == ".nvram", strings.EqualFold(path.Base(u.Key), "nvram"):
		return ItemNVRAM
	case u.Disk == nil && (disk || ext == ".vmdk"):
		return ItemDisk
	case ext == ".iso", ext == ".flp", ext == ".img":
		return ItemMedia
	}
	return ItemOther
}
