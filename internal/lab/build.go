package lab

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	// buildTimeout bounds one task of the simulator while the inventory is made.
	buildTimeout = 30 * time.Second
	// buildPoll is how often such a task is looked at. Waiting for it by the
	// property collector takes 20 ms a task.
	buildPoll = 200 * time.Microsecond

	isoFolder = "iso"
	isoSize   = 384 << 10
	// The sizes that ESXi gives NVRAM files.
	nvramUEFI = 270840
	nvramBIOS = 8684
)

// builder makes the inventory. It is used by one goroutine, before anything is
// served.
type builder struct {
	lab     *Lab
	dir     string // of the datastore
	root    types.ManagedObjectReference
	pool    types.ManagedObjectReference
	hosts   []types.ManagedObjectReference
	network types.BaseVirtualDeviceBackingInfo
	folders map[string]types.ManagedObjectReference // by escaped path below /DC0/vm
	next    int                                     // host of the next VM
	dirs    map[string]bool                         // taken in the datastore
}

func (l *Lab) build(ctx context.Context, specs []VMSpec) error {
	client, err := vim25.NewClient(ctx, l.model.Service)
	if err != nil {
		return fmt.Errorf("connect to simulator: %w", err)
	}
	finder := find.NewFinder(client)
	dc, err := finder.Datacenter(ctx, "/"+datacenter)
	if err != nil {
		return fmt.Errorf("find datacenter: %w", err)
	}
	finder.SetDatacenter(dc)
	root, err := dc.Folders(ctx)
	if err != nil {
		return fmt.Errorf("find folders: %w", err)
	}
	cluster, err := finder.ClusterComputeResource(ctx, datacenter+"_C0")
	if err != nil {
		return fmt.Errorf("find cluster: %w", err)
	}
	pool, err := cluster.ResourcePool(ctx)
	if err != nil {
		return fmt.Errorf("find resource pool: %w", err)
	}
	hosts, err := cluster.Hosts(ctx)
	if err != nil {
		return fmt.Errorf("find hosts: %w", err)
	}
	network, err := finder.Network(ctx, "VM Network")
	if err != nil {
		return fmt.Errorf("find network: %w", err)
	}
	backing, err := network.EthernetCardBackingInfo(ctx)
	if err != nil {
		return fmt.Errorf("find network: %w", err)
	}
	ds, err := finder.Datastore(ctx, datastore)
	if err != nil {
		return fmt.Errorf("find datastore: %w", err)
	}
	store, ok := l.model.Map().Get(ds.Reference()).(*simulator.Datastore)
	if !ok {
		return errors.New("find datastore: the simulator has another type")
	}
	b := &builder{
		lab: l, dir: store.Info.GetDatastoreInfo().Url, root: root.VmFolder.Reference(), pool: pool.Reference(),
		network: backing, folders: map[string]types.ManagedObjectReference{}, dirs: map[string]bool{},
	}
	for _, h := range hosts {
		b.hosts = append(b.hosts, h.Reference())
	}
	l.datastoreDir = b.dir
	if err := os.MkdirAll(filepath.Join(b.dir, isoFolder), 0o700); err != nil {
		return fmt.Errorf("make folder for images: %w", err)
	}
	for i := range specs {
		if err := b.add(ctx, specs[i]); err != nil {
			return fmt.Errorf("make VM %s: %w", specs[i].Path, err)
		}
	}
	return nil
}

// add makes one VM in the state its spec wants.
func (b *builder) add(ctx context.Context, spec VMSpec) error {
	spec.setDefaults()
	spec.Disks = append([]DiskSpec(nil), spec.Disks...)
	for i := range spec.Disks {
		d := &spec.Disks[i]
		if err := d.check(); err != nil {
			return err
		}
		if d.Seed == 0 {
			d.Seed = seedFor(spec.Path, i)
		}
		if d.Controller == "" {
			d.Controller = spec.Controller
		}
	}
	folders, name, err := spec.parts()
	if err != nil {
		return err
	}
	parent, err := b.folder(folders)
	if err != nil {
		return err
	}
	config, err := b.config(spec, name)
	if err != nil {
		return err
	}
	host := b.hosts[b.next%len(b.hosts)]
	b.next++
	folder, ok := b.lab.model.Map().Get(parent).(*simulator.Folder)
	if !ok {
		return errors.New("parent is no folder")
	}
	result, err := b.run(ctx, folder.CreateVMTask(b.lab.simContext(), &types.CreateVM_Task{
		This: parent, Config: *config, Pool: b.pool, Host: &host,
	}))
	if err != nil {
		return err
	}
	ref, ok := result.(types.ManagedObjectReference)
	if !ok {
		return errors.New("the simulator gave no VM")
	}
	sim, ok := b.lab.model.Map().Get(ref).(*simulator.VirtualMachine)
	if !ok {
		return errors.New("the simulator gave another type")
	}
	vm := b.lab.addVM(ref, spec.Path)
	sim.Name, sim.Config.Name, sim.Summary.Config.Name = name, name, name
	if err := b.finish(spec, sim, vm); err != nil {
		return err
	}
	return b.state(ctx, spec, sim)
}

// folder finds or makes a folder, given its escaped path.
func (b *builder) folder(parts []string) (types.ManagedObjectReference, error) {
	parent := b.root
	for i, part := range parts {
		at := strings.Join(parts[:i+1], "/")
		ref, ok := b.folders[at]
		if !ok {
			f, isFolder := b.lab.model.Map().Get(parent).(*simulator.Folder)
			if !isFolder {
				return ref, errors.New("parent is no folder")
			}
			plain, err := url.PathUnescape(part)
			if err != nil {
				return ref, fmt.Errorf("folder %q: %w", at, err)
			}
			body, isBody := f.CreateFolder(b.lab.simContext(), &types.CreateFolder{This: parent, Name: plain}).(*methods.CreateFolderBody)
			if !isBody || body.Fault_ != nil || body.Res == nil {
				return ref, fmt.Errorf("folder %q could not be made", at)
			}
			ref = body.Res.Returnval
			b.folders[at] = ref
		}
		parent = ref
	}
	return parent, nil
}

// config is what vCenter is asked to create. Disks are created small: their
// files stay empty, and finish sets the capacity.
func (b *builder) config(spec VMSpec, escaped string) (*types.VirtualMachineConfigSpec, error) {
	// A name that the simulator has to escape makes it add the devices twice, so
	// such a VM is created by another and gets its own in finish.
	name := strings.ReplaceAll(escaped, "%", "_")
	// As vSphere does, a second VM of a name gets a folder with a number.
	dir := escaped
	for i := 1; b.dirs[dir]; i++ {
		dir = fmt.Sprintf("%s_%d", escaped, i)
	}
	b.dirs[dir] = true
	files := fmt.Sprintf("[%s] %s/%s", datastore, dir, escaped)
	devices, err := b.devices(spec, files)
	if err != nil {
		return nil, err
	}
	config := &types.VirtualMachineConfigSpec{
		Name: name, GuestId: spec.GuestID, NumCPUs: int32(spec.CPUs), MemoryMB: int64(spec.MemoryMB),
		NumCoresPerSocket: types.NewInt32(1), Version: "vmx-19", Annotation: spec.Note,
		Firmware: string(types.GuestOsDescriptorFirmwareTypeBios),
		Files:    &types.VirtualMachineFileInfo{VmPathName: files + ".vmx"},
	}
	if spec.UEFI {
		config.Firmware = string(types.GuestOsDescriptorFirmwareTypeEfi)
		config.BootOptions = &types.VirtualMachineBootOptions{EfiSecureBootEnabled: types.NewBool(spec.SecureBoot)}
	}
	if config.DeviceChange, err = devices.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd); err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return config, nil
}

func described(label string) *types.Description { return &types.Description{Label: label} }

// devices lists a VM's hardware: controllers in the order of the disks, the
// disks, the CD-ROM drive, the network adapter. Names of files begin with files.
func (b *builder) devices(spec VMSpec, files string) (object.VirtualDeviceList, error) {
	var devices object.VirtualDeviceList
	controllers := map[string]types.BaseVirtualController{}
	controller := func(kind string) (types.BaseVirtualController, error) {
		if c, ok := controllers[kind]; ok {
			return c, nil
		}
		var d types.BaseVirtualDevice
		var err error
		var label string
		switch kind {
		case "lsilogic", "lsilogic-sas", "pvscsi":
			d, err = devices.CreateSCSIController(kind)
			label = "SCSI controller"
		case "sata":
			d, err = devices.CreateSATAController()
			label = "SATA controller"
		case "nvme":
			d, err = devices.CreateNVMEController()
			label = "NVME controller"
		case "ide":
			d, err = devices.CreateIDEController()
			label = "IDE"
		default:
			return nil, fmt.Errorf("unknown controller %q", kind)
		}
		if err != nil {
			return nil, fmt.Errorf("make controller %q: %w", kind, err)
		}
		c, ok := d.(types.BaseVirtualController)
		if !ok {
			return nil, fmt.Errorf("%q is no controller", kind)
		}
		d.GetVirtualDevice().DeviceInfo = described(fmt.Sprintf("%s %d", label, c.GetVirtualController().BusNumber))
		devices = append(devices, d)
		controllers[kind] = c
		return c, nil
	}
	for i, d := range spec.Disks {
		c, err := controller(d.Controller)
		if err != nil {
			return nil, err
		}
		file := files
		if i > 0 {
			file += fmt.Sprintf("_%d", i)
		}
		disk := devices.CreateDisk(c, types.ManagedObjectReference{}, file+".vmdk")
		disk.CapacityInKB = 1
		disk.DeviceInfo = described(fmt.Sprintf("Hard disk %d", i+1))
		if backing, ok := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok {
			backing.ThinProvisioned = types.NewBool(true)
			backing.DiskMode = string(types.VirtualDiskModePersistent)
			if d.Independent {
				backing.DiskMode = string(types.VirtualDiskModeIndependent_persistent)
			}
		}
		devices = append(devices, disk)
	}
	if spec.CDROM || spec.ISO != "" {
		c, err := controller("ide")
		if err != nil {
			return nil, err
		}
		ide, ok := c.(*types.VirtualIDEController)
		if !ok {
			return nil, errors.New("CD-ROM drives need an IDE controller")
		}
		drive, err := devices.CreateCdrom(ide)
		if err != nil {
			return nil, fmt.Errorf("make CD-ROM drive: %w", err)
		}
		drive.DeviceInfo = described("CD/DVD drive 1")
		if spec.ISO != "" {
			devices.InsertIso(drive, fmt.Sprintf("[%s] %s/%s", datastore, isoFolder, spec.ISO))
		}
		devices = append(devices, drive)
	}
	if spec.NIC != "none" {
		nic, err := devices.CreateEthernetCard(spec.NIC, b.network)
		if err != nil {
			return nil, fmt.Errorf("make network adapter: %w", err)
		}
		nic.GetVirtualDevice().DeviceInfo = described("Network adapter 1")
		devices = append(devices, nic)
	}
	if spec.TPM {
		devices = append(devices, &types.VirtualTPM{VirtualDevice: types.VirtualDevice{Key: -900, DeviceInfo: described("Virtual TPM")}})
	}
	return devices, nil
}

// extents gives what the server says of the files that hold a disk's data.
func extents(sim *simulator.VirtualMachine, disk int32) []*types.VirtualMachineFileLayoutExFileInfo {
	var files []*types.VirtualMachineFileLayoutExFileInfo
	for _, d := range sim.LayoutEx.Disk {
		if d.Key != disk {
			continue
		}
		for i := range sim.LayoutEx.File {
			f := &sim.LayoutEx.File[i]
			held := slices.ContainsFunc(d.Chain, func(u types.VirtualMachineFileLayoutExDiskUnit) bool { return slices.Contains(u.FileKey, f.Key) })
			if held && f.Type == string(types.VirtualMachineFileLayoutExFileTypeDiskExtent) {
				files = append(files, f)
			}
		}
	}
	return files
}

// finish sets what cannot be asked for: capacities, tools, and the content.
func (b *builder) finish(spec VMSpec, sim *simulator.VirtualMachine, vm *vm) error {
	var committed, uncommitted int64
	n := 0
	for _, d := range sim.Config.Hardware.Device {
		v, ok := d.(*types.VirtualDisk)
		if !ok {
			continue
		}
		if n == len(spec.Disks) {
			return errors.New("there are more disks than asked for")
		}
		s := spec.Disks[n]
		n++
		v.CapacityInBytes, v.CapacityInKB = s.Capacity, s.Capacity/1024
		v.DeviceInfo.GetDescription().Summary = fmt.Sprintf("%d KB", v.CapacityInKB)
		if file, ok := v.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok && s.RDM {
			v.Backing = &types.VirtualDiskRawDiskMappingVer1BackingInfo{
				VirtualDeviceFileBackingInfo: file.VirtualDeviceFileBackingInfo,
				LunUuid:                      "0200000000600508b1001c0000000000000000000000",
				DeviceName:                   "vml.0200000000600508b1001c",
				CompatibilityMode:            string(types.VirtualDiskCompatibilityModeVirtualMode),
				DiskMode:                     file.DiskMode, Uuid: file.Uuid,
			}
		}
		c := newContent(s)
		vm.disks[v.Key] = &disk{content: c}
		vm.order = append(vm.order, v.Key)
		used := int64(0)
		for _, e := range c.extents {
			used += e.Len
		}
		for _, file := range extents(sim, v.Key) {
			file.Size, file.UniqueSize = used, used
		}
		committed += used
		uncommitted += s.Capacity - used
	}
	if n != len(spec.Disks) {
		return fmt.Errorf("there are %d disks, want %d", n, len(spec.Disks))
	}
	sim.Summary.Storage = &types.VirtualMachineStorageSummary{Committed: committed, Uncommitted: uncommitted, Unshared: committed, Timestamp: time.Now()}
	switch {
	case spec.NVRAM && !spec.UEFI:
		vm.nvram = nvram(spec.Path, nvramBIOS)
	case spec.UEFI:
		vm.nvram = nvram(spec.Path, nvramUEFI)
	}
	if spec.Encrypted {
		sim.Config.KeyId = &types.CryptoKeyId{KeyId: "lab-key", ProviderId: &types.KeyProviderId{Id: "lab-kms"}}
	}
	if spec.ISO != "" && !spec.ISOMissing {
		p := make([]byte, isoSize)
		random(p, seedFor(spec.ISO, 0), 0)
		if err := os.WriteFile(filepath.Join(b.dir, isoFolder, path.Base(spec.ISO)), p, 0o600); err != nil {
			return fmt.Errorf("write image: %w", err)
		}
	}
	return nil
}

func nvram(path string, size int) []byte {
	p := make([]byte, size+size%8)
	random(p, seedFor(path, -1), 0)
	copy(p, "MRVN")
	return p[:size]
}

// state takes snapshots and turns the VM on or into a template.
func (b *builder) state(ctx context.Context, spec VMSpec, sim *simulator.VirtualMachine) error {
	if spec.PoweredOn {
		if _, err := b.run(ctx, sim.PowerOnVMTask(b.lab.simContext(), &types.PowerOnVM_Task{This: sim.Self})); err != nil {
			return err
		}
		if !spec.NoTools {
			sim.Guest.ToolsStatus = types.VirtualMachineToolsStatusToolsOk
			sim.Guest.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
			sim.Guest.ToolsVersionStatus2 = string(types.VirtualMachineToolsVersionStatusGuestToolsCurrent)
			sim.Guest.HostName = sim.Name
			sim.Summary.Guest.ToolsStatus = sim.Guest.ToolsStatus
			sim.Summary.Guest.ToolsRunningStatus = sim.Guest.ToolsRunningStatus
		}
	}
	for _, s := range spec.Snapshots {
		if _, err := b.run(ctx, sim.CreateSnapshotExTask(b.lab.simContext(), &types.CreateSnapshotEx_Task{
			This: sim.Self, Name: s.Name, Description: s.Description,
		})); err != nil {
			return err
		}
	}
	if spec.Template {
		if body := sim.MarkAsTemplate(&types.MarkAsTemplate{This: sim.Self}); body.Fault() != nil {
			return fmt.Errorf("mark as template: %s", body.Fault().String)
		}
	}
	return nil
}

// run waits for the task that a method of the simulator returned.
func (b *builder) run(ctx context.Context, body soap.HasFault) (types.AnyType, error) {
	if f := body.Fault(); f != nil {
		return nil, errors.New("the simulator refused: " + f.String)
	}
	var ref types.ManagedObjectReference
	switch r := body.(type) {
	case *methods.CreateVM_TaskBody:
		ref = r.Res.Returnval
	case *methods.PowerOnVM_TaskBody:
		ref = r.Res.Returnval
	case *methods.CreateSnapshotEx_TaskBody:
		ref = r.Res.Returnval
	default:
		return nil, fmt.Errorf("%T gives no task", body)
	}
	task, ok := b.lab.model.Map().Get(ref).(*simulator.Task)
	if !ok {
		return nil, errors.New("the simulator lost a task")
	}
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	tick := time.NewTicker(buildPoll)
	defer tick.Stop()
	for {
		var info types.TaskInfo
		b.lab.model.Map().WithLock(b.lab.simContext(), task, func() { info = task.Info })
		switch info.State {
		case types.TaskInfoStateSuccess:
			return info.Result, nil
		case types.TaskInfoStateError:
			if info.Error != nil {
				return nil, fmt.Errorf("%s: %T", info.DescriptionId, info.Error.Fault)
			}
			return nil, errors.New(info.DescriptionId + " failed")
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", info.DescriptionId, ctx.Err())
		case <-tick.C:
		}
	}
}
