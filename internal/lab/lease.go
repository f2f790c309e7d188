package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// The states of LeaseRecord.
const (
	LeaseInitializing = "initializing"
	LeaseReady        = "ready"
	LeaseCompleted    = "completed"
	LeaseAborted      = "aborted"
	LeaseExpired      = "expired"
	LeaseFailed       = "failed"
)

// LeaseRecord is what became of a lease.
type LeaseRecord struct {
	VM       string // path
	Snapshot string // value of the reference; empty for a lease of the VM itself
	ID       string // value of the lease's reference
	State    string // LeaseInitializing and so on
	// Opened and Closed are when it was asked for and when it ended. Closed is
	// zero while it is open.
	Opened, Closed time.Time
	Percents       []int  // of HttpNfcLeaseProgress, in order
	AbortReason    string // what the client said
	Error          string // why opening it failed
}

func (r *LeaseRecord) open() bool { return r.State == LeaseInitializing || r.State == LeaseReady }

// LeaseLog lists all leases in the order they were opened.
func (l *Lab) LeaseLog() []LeaseRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]LeaseRecord, len(l.leases))
	for i, lease := range l.leases {
		out[i] = lease.record
		out[i].Percents = slices.Clone(lease.record.Percents)
	}
	return out
}

// OpenLeases is how many leases are initializing or ready.
func (l *Lab) OpenLeases() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, lease := range l.leases {
		if lease.record.open() {
			n++
		}
	}
	return n
}

// holds reports whether an open lease keeps a VM from being changed. A
// snapshot's removal is kept back by leases of the VM and of that snapshot.
func (l *Lab) holds(v *vm, snapshot *types.ManagedObjectReference) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.leases, func(lease *lease) bool {
		return lease.vm == v && lease.record.open() &&
			(snapshot == nil || lease.snapshot == nil || *lease.snapshot == *snapshot)
	})
}

// exporterRef is never given to a client.
var exporterRef = types.ManagedObjectReference{Type: "OvfManager", Value: "hyper2kvm-lab-exporter"}

// exporter has the methods that the simulator lacks. Their receivers are in
// the requests' bodies.
type exporter struct {
	mo.OvfManager
	lab *Lab
}

// Lock and Unlock opt out of the simulator's lock: exports may run at once.
func (*exporter) Lock() {}

// Unlock does nothing, as Lock.
func (*exporter) Unlock() {}

// ExportVm opens a lease on a VM that is powered off.
func (e *exporter) ExportVm(ctx *simulator.Context, req *types.ExportVm) soap.HasFault {
	body := new(methods.ExportVmBody)
	sim, ok := ctx.Map.Get(req.This).(*simulator.VirtualMachine)
	if !ok {
		body.Fault_ = simulator.Fault("", &types.ManagedObjectNotFound{Obj: req.This})
		return body
	}
	var lease *lease
	var fault types.BaseMethodFault
	ctx.WithLock(sim, func() {
		switch {
		case sim.Config.Template:
			fault = new(types.NotSupported)
		case sim.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff:
			fault = &types.InvalidPowerState{
				RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: sim.Runtime.PowerState,
			}
		default:
			lease, fault = e.open(ctx, sim, nil, sim.Config)
		}
	})
	if fault != nil {
		body.Fault_ = simulator.Fault(message(fault), fault)
		return body
	}
	body.Res = &types.ExportVmResponse{Returnval: lease.Self}
	return body
}

// ExportSnapshot opens a lease on a snapshot; its VM may be powered on.
func (e *exporter) ExportSnapshot(ctx *simulator.Context, req *types.ExportSnapshot) soap.HasFault {
	body := new(methods.ExportSnapshotBody)
	snapshot, ok := ctx.Map.Get(req.This).(*simulator.VirtualMachineSnapshot)
	if !ok {
		body.Fault_ = simulator.Fault("", &types.ManagedObjectNotFound{Obj: req.This})
		return body
	}
	sim, ok := ctx.Map.Get(snapshot.Vm).(*simulator.VirtualMachine)
	if !ok {
		body.Fault_ = simulator.Fault("", &types.ManagedObjectNotFound{Obj: snapshot.Vm})
		return body
	}
	var lease *lease
	var fault types.BaseMethodFault
	ctx.WithLock(sim, func() { lease, fault = e.open(ctx, sim, &req.This, &snapshot.Config) })
	if fault != nil {
		body.Fault_ = simulator.Fault(message(fault), fault)
		return body
	}
	body.Res = &types.ExportSnapshotResponse{Returnval: lease.Self}
	return body
}

// message is the text that goes with a fault.
func message(fault types.BaseMethodFault) string {
	switch f := fault.(type) {
	case *types.InvalidPowerState:
		return "The attempted operation cannot be performed in the current state (Powered " + strings.TrimPrefix(string(f.ExistingState), "powered") + ")."
	case *types.NoPermission:
		return "Permission to perform this operation was denied."
	case *types.FileNotFound:
		return "File " + f.File + " was not found"
	case *types.TaskInProgress:
		return "The operation is not allowed: another task is already in progress."
	case *types.NotSupported:
		return "The operation is not supported on the object."
	case *types.Timedout:
		return "Operation timed out."
	}
	return "The operation is not allowed in the current state."
}

// lease is a HttpNfcLease.
type lease struct {
	mo.HttpNfcLease // first: the simulator looks for it there

	lab      *Lab
	vm       *vm
	snapshot *types.ManagedObjectReference // nil for a lease of the VM itself
	faults   *faultState                   // when it was opened
	first    bool                          // of those opened since the faults were set
	variant  int
	ticket   string
	items    []*item
	timer    *time.Timer
	done     chan struct{} // closed when it has ended

	// Guarded by Lab.mu.
	record  LeaseRecord
	expires time.Time // unless renewed
	dies    time.Time // whatever happens; zero for never
}

// item is one file of a lease.
type item struct {
	number      int // from 1 for disks, 0 for other files
	key         string
	importKey   string
	name        string // in the URL
	target      string // target id
	description string // of the device
	capacity    int64
	disk        *disk
	stream      *stream // set before the lease is ready

	// Guarded by Lab.mu.
	sent     bool // to the end
	checksum types.HttpNfcLeaseManifestEntryChecksumType
}

// open makes a lease and begins to prepare its files. The caller holds the
// VM's lock.
func (e *exporter) open(ctx *simulator.Context, sim *simulator.VirtualMachine, snapshot *types.ManagedObjectReference, config *types.VirtualMachineConfigInfo) (*lease, types.BaseMethodFault) {
	l, v := e.lab, e.lab.vmOf(sim.Self)
	faults := l.faultsOf(v)
	switch {
	case faults.NoPermission:
		return nil, &types.NoPermission{Object: &sim.Self, PrivilegeId: "VApp.Export"}
	case faults.takeOf("busy", 0, faults.TaskInProgress):
		return nil, &types.TaskInProgress{Task: types.ManagedObjectReference{Type: "Task", Value: "task-busy-" + sim.Self.Value}}
	case config.KeyId != nil:
		return nil, new(types.NotSupported)
	}
	items, fault := l.items(v, sim.Name, config, snapshot != nil)
	if fault != nil {
		return nil, fault
	}
	n := &lease{
		lab: l, vm: v, snapshot: snapshot, faults: faults, ticket: uuid.NewString(), items: items,
		first: faults.take("opened", 0, 0) && faults.take("first", 0, 1), done: make(chan struct{}),
	}
	key := ""
	if ctx.Session != nil {
		key = ctx.Session.Key
	}
	n.Self = types.ManagedObjectReference{Type: "HttpNfcLease", Value: "session[" + key + "]" + uuid.NewString()}
	n.State = types.HttpNfcLeaseStateInitializing
	n.Mode = string(types.HttpNfcLeaseModePushOrGet)
	n.Capabilities = types.HttpNfcLeaseCapabilities{CorsSupported: true}
	n.timer = time.AfterFunc(time.Hour, n.tick)
	n.timer.Stop()
	n.record = LeaseRecord{VM: v.path, ID: n.Self.Value, State: LeaseInitializing, Opened: time.Now()}
	if snapshot != nil {
		n.record.Snapshot = snapshot.Value
	}
	ctx.Map.Put(n)
	l.mu.Lock()
	v.opened++
	if faults.Recompress {
		n.variant = 1 + v.opened%250
	}
	l.leases = append(l.leases, n)
	l.tickets[n.ticket] = n
	l.mu.Unlock()
	l.running.Add(1)
	go func() {
		defer l.running.Done()
		n.prepare(l.ctx)
	}()
	return n, nil
}

// items lists what a lease offers: the disks in the order of the hardware, the
// NVRAM, the images in CD-ROM drives.
func (l *Lab) items(v *vm, name string, config *types.VirtualMachineConfigInfo, snapshot bool) ([]*item, types.BaseMethodFault) {
	var items []*item
	var images []*item
	disks, others := 0, 0
	other := func(key, suffix, description string, data []byte) *item {
		others++
		file := fmt.Sprintf("file-%d%s", others, suffix)
		return &item{
			key: "/" + v.ref.Value + "/" + key, importKey: "/" + name + "/" + key,
			name: file, target: file, description: description, stream: memoryStream(data),
		}
	}
	for _, d := range config.Hardware.Device {
		key := deviceKey(config.Hardware.Device, d)
		switch device := d.(type) {
		case *types.VirtualDisk:
			switch b := device.Backing.(type) {
			case *types.VirtualDiskFlatVer2BackingInfo:
				if snapshot && strings.HasPrefix(b.DiskMode, "independent") {
					continue
				}
			default:
				return nil, new(types.NotSupported)
			}
			known := v.disks[device.Key]
			if known == nil || known.content.size != device.CapacityInBytes {
				// The client made it, and never wrote to it.
				known = &disk{content: newContent(DiskSpec{Capacity: device.CapacityInBytes, Pattern: PatternEmpty})}
			}
			file := fmt.Sprintf("disk-%d.vmdk", disks)
			disks++
			items = append(items, &item{
				number: disks, key: "/" + v.ref.Value + "/" + key, importKey: "/" + name + "/" + key,
				name: file, target: file, capacity: device.CapacityInBytes, disk: known,
				description: device.DeviceInfo.GetDescription().Label,
			})
		case *types.VirtualCdrom:
			iso, ok := device.Backing.(*types.VirtualCdromIsoBackingInfo)
			if !ok {
				continue
			}
			_, file, _ := strings.Cut(iso.FileName, "] ")
			data, err := os.ReadFile(filepath.Join(l.datastoreDir, filepath.FromSlash(filepath.Clean("/"+file))))
			if err != nil {
				return nil, &types.FileNotFound{FileFault: types.FileFault{File: iso.FileName}}
			}
			images = append(images, other(key, ".iso", device.DeviceInfo.GetDescription().Label, data))
		case *types.VirtualTPM:
			return nil, new(types.NotSupported)
		}
	}
	if v.nvram != nil {
		items = append(items, other("nvram", ".nvram", "nvram", v.nvram))
	}
	return append(items, images...), nil
}

// deviceKey is the last part of a device URL's key: the type of the device's
// controller with its bus number, and the unit.
func deviceKey(all []types.BaseVirtualDevice, d types.BaseVirtualDevice) string {
	device := d.GetVirtualDevice()
	unit := int32(0)
	if device.UnitNumber != nil {
		unit = *device.UnitNumber
	}
	for _, c := range all {
		if b, ok := c.(types.BaseVirtualController); ok && c.GetVirtualDevice().Key == device.ControllerKey {
			return fmt.Sprintf("%s%d:%d", reflect.TypeOf(c).Elem().Name(), b.GetVirtualController().BusNumber, unit)
		}
	}
	return fmt.Sprintf("%s%d", reflect.TypeOf(d).Elem().Name(), device.Key)
}

// prepare encodes the disks that have not been yet and makes the lease ready.
func (n *lease) prepare(ctx context.Context) {
	var wg sync.WaitGroup
	errs := make([]error, len(n.items))
	for i, it := range n.items {
		if it.disk != nil {
			wg.Go(func() { it.stream, errs[i] = n.lab.streams.get(ctx, it.disk, n.variant) })
		}
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			n.fail(fmt.Sprintf("%s: %v", n.items[i].description, err))
			return
		}
	}
	if n.faults.LeaseFails {
		n.fail("asked for by Faults.LeaseFails")
		return
	}
	l := n.lab
	info := n.info()
	l.mu.Lock()
	if n.record.State != LeaseInitializing {
		l.mu.Unlock()
		return // aborted meanwhile
	}
	n.record.State = LeaseReady
	now := time.Now()
	n.expires = now.Add(l.opts.LeaseTimeout)
	if n.faults.LeaseExpiresAfter > 0 && n.faults.take("dies", 0, n.faults.LeaseExpireTimes) {
		n.dies = now.Add(n.faults.LeaseExpiresAfter)
	}
	n.timer.Reset(n.due().Sub(now))
	l.mu.Unlock()
	n.update(
		types.PropertyChange{Name: "initializeProgress", Val: int32(100)},
		types.PropertyChange{Name: "info", Val: info},
		types.PropertyChange{Name: "state", Val: types.HttpNfcLeaseStateReady},
	)
}

func (n *lease) fail(why string) {
	n.lab.mu.Lock()
	n.record.Error = why
	n.lab.mu.Unlock()
	n.end(LeaseFailed, "")
	n.update(stateError(&types.FileFault{File: "[" + datastore + "]"}, "Failed to open the disk.")...)
}

// stateError is the change that ends a lease in state error.
func stateError(fault types.BaseMethodFault, text string) []types.PropertyChange {
	return []types.PropertyChange{
		{Name: "error", Val: &types.LocalizedMethodFault{Fault: fault, LocalizedMessage: text}},
		{Name: "state", Val: types.HttpNfcLeaseStateError},
	}
}

// update changes properties outside of a call of the lease's own methods.
func (n *lease) update(changes ...types.PropertyChange) {
	ctx := n.lab.simContext()
	ctx.Map.AtomicUpdate(ctx, n, changes)
}

// info is what a client learns of a lease that is ready.
func (n *lease) info() *types.HttpNfcLeaseInfo {
	l, f := n.lab, n.faults
	timeout := (l.opts.LeaseTimeout + time.Second - 1) / time.Second
	info := &types.HttpNfcLeaseInfo{Lease: n.Self, Entity: n.vm.ref, LeaseTimeout: int32(timeout)}
	shown := l.HostThumbprint()
	switch f.Thumbprint {
	case "missing":
		shown = ""
	case "wrong":
		shown = thumbprint(l.pki.vcenter)
	}
	host := reachable(l.host.addr)
	if f.StarHost {
		if _, port, err := net.SplitHostPort(host); err == nil {
			host = "*:" + port
		}
	}
	for _, it := range n.items {
		isDisk := it.disk != nil
		u := types.HttpNfcLeaseDeviceUrl{
			Key: it.key, ImportKey: it.importKey, Url: "https://" + host + filePrefix + n.ticket + "/" + it.name,
			SslThumbprint: shown, Disk: &isDisk, TargetId: it.target,
		}
		if f.TargetID != nil {
			u.TargetId = f.TargetID(it.number, it.target)
		}
		if isDisk {
			info.TotalDiskCapacityInKB += it.capacity / 1024
		} else {
			u.FileSize = it.stream.size
		}
		info.DeviceUrl = append(info.DeviceUrl, u)
	}
	return info
}

// reachable is where a listener's address can be dialled.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}

// due is when the lease ends if nothing renews it. The caller holds Lab.mu.
func (n *lease) due() time.Time {
	if !n.dies.IsZero() && n.dies.Before(n.expires) {
		return n.dies
	}
	return n.expires
}

// tick ends the lease when its time has come.
func (n *lease) tick() {
	n.lab.mu.Lock()
	if left := time.Until(n.due()); n.record.State != LeaseReady || left > 0 {
		if n.record.State == LeaseReady {
			n.timer.Reset(left) // it was renewed
		}
		n.lab.mu.Unlock()
		return
	}
	n.lab.mu.Unlock()
	if n.end(LeaseExpired, "") {
		n.update(stateError(new(types.Timedout), "The lease has timed out.")...)
	}
}

// end ends the lease, and the streams that run on it. It reports false when it
// had ended before.
func (n *lease) end(state, reason string) bool {
	l := n.lab
	l.mu.Lock()
	open := n.record.open()
	if open {
		n.record.State, n.record.Closed, n.record.AbortReason = state, time.Now(), reason
		delete(l.tickets, n.ticket)
		n.timer.Stop()
		close(n.done)
	}
	l.mu.Unlock()
	if open && n.variant != 0 {
		for _, it := range n.items {
			if it.disk != nil {
				// Nobody asks for this variant again, and the folder goes with the lab.
				_ = l.streams.forget(it.disk, n.variant)
			}
		}
	}
	return open
}

// over is the fault of a call that comes after the lease's end, nil before.
func (n *lease) over() types.BaseMethodFault {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	switch n.record.State {
	case LeaseInitializing, LeaseReady:
		return nil
	case LeaseExpired:
		return new(types.Timedout)
	}
	return new(types.InvalidState)
}

// HttpNfcLeaseProgress renews the lease.
func (n *lease) HttpNfcLeaseProgress(ctx *simulator.Context, req *types.HttpNfcLeaseProgress) soap.HasFault {
	body := new(methods.HttpNfcLeaseProgressBody)
	if fault := n.over(); fault != nil {
		body.Fault_ = simulator.Fault(message(fault), fault)
		return body
	}
	if req.Percent < 0 || req.Percent > 100 {
		body.Fault_ = simulator.Fault("", &types.InvalidArgument{InvalidProperty: "percent"})
		return body
	}
	n.lab.mu.Lock()
	n.record.Percents = append(n.record.Percents, int(req.Percent))
	if n.record.State == LeaseReady {
		n.expires = time.Now().Add(n.lab.opts.LeaseTimeout)
		n.timer.Reset(time.Until(n.due()))
	}
	n.lab.mu.Unlock()
	ctx.Update(n, []types.PropertyChange{{Name: "transferProgress", Val: req.Percent}})
	body.Res = new(types.HttpNfcLeaseProgressResponse)
	return body
}

// HttpNfcLeaseComplete ends the lease well.
func (n *lease) HttpNfcLeaseComplete(ctx *simulator.Context, _ *types.HttpNfcLeaseComplete) soap.HasFault {
	body := new(methods.HttpNfcLeaseCompleteBody)
	fault := n.over()
	if fault == nil && !n.end(LeaseCompleted, "") {
		fault = n.over()
	}
	if fault != nil {
		body.Fault_ = simulator.Fault(message(fault), fault)
		return body
	}
	ctx.Update(n, []types.PropertyChange{{Name: "state", Val: types.HttpNfcLeaseStateDone}})
	body.Res = new(types.HttpNfcLeaseCompleteResponse)
	return body
}

// HttpNfcLeaseAbort ends the lease with the client's reason.
func (n *lease) HttpNfcLeaseAbort(ctx *simulator.Context, req *types.HttpNfcLeaseAbort) soap.HasFault {
	body := new(methods.HttpNfcLeaseAbortBody)
	reason := ""
	if req.Fault != nil {
		reason = req.Fault.LocalizedMessage
	}
	fault := n.over()
	if fault == nil && !n.end(LeaseAborted, reason) {
		fault = n.over()
	}
	if fault != nil {
		body.Fault_ = simulator.Fault(message(fault), fault)
		return body
	}
	ctx.Update(n, stateError(new(types.RequestCanceled), "The lease was aborted."))
	body.Res = new(types.HttpNfcLeaseAbortResponse)
	return body
}

// HttpNfcLeaseSetManifestChecksumType says what else than SHA-1 the manifest is
// to hold.
func (n *lease) HttpNfcLeaseSetManifestChecksumType(_ *simulator.Context, req *types.HttpNfcLeaseSetManifestChecksumType) soap.HasFault {
	body := new(methods.HttpNfcLeaseSetManifestChecksumTypeBody)
	fault := n.over()
	if fault == nil && n.lab.faultsOf(n.vm).NoSHA256 {
		fault = new(types.NotSupported)
	}
	if fault == nil {
		fault = n.setChecksums(req.DeviceUrlsToChecksumTypes)
	}
	if fault != nil {
		body.Fault_ = simulator.Fault(message(fault), fault)
		return body
	}
	body.Res = new(types.HttpNfcLeaseSetManifestChecksumTypeResponse)
	return body
}

func (n *lease) setChecksums(pairs []types.KeyValue) types.BaseMethodFault {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	wanted := map[*item]types.HttpNfcLeaseManifestEntryChecksumType{}
	for _, p := range pairs {
		i := slices.IndexFunc(n.items, func(it *item) bool { return it.key == p.Key })
		kind := types.HttpNfcLeaseManifestEntryChecksumType(p.Value)
		if i < 0 || !slices.Contains(kind.Values(), kind) {
			return &types.InvalidArgument{InvalidProperty: "deviceUrlsToChecksumTypes"}
		}
		wanted[n.items[i]] = kind
	}
	for it, kind := range wanted {
		it.checksum = kind
	}
	return nil
}

// HttpNfcLeaseGetManifest lists what has been sent to the end.
func (n *lease) HttpNfcLeaseGetManifest(_ *simulator.Context, _ *types.HttpNfcLeaseGetManifest) soap.HasFault {
	body := new(methods.HttpNfcLeaseGetManifestBody)
	if fault := n.over(); fault != nil {
		body.Fault_ = simulator.Fault(message(fault), fault)
		return body
	}
	body.Res = &types.HttpNfcLeaseGetManifestResponse{Returnval: n.manifest()}
	return body
}

func (n *lease) manifest() []types.HttpNfcLeaseManifestEntry {
	f := n.lab.faultsOf(n.vm)
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	var out []types.HttpNfcLeaseManifestEntry
	for _, it := range n.items {
		if !it.sent || f.NoManifest {
			continue
		}
		e := types.HttpNfcLeaseManifestEntry{
			Key: it.key, Size: it.stream.size, Disk: it.disk != nil, Capacity: it.capacity, PopulatedSize: it.stream.populated,
		}
		if !f.NoManifestHash {
			one, two := it.stream.sha1, it.stream.sha256
			if f.WrongManifestHash {
				one, two = wrong(one), wrong(two)
			}
			e.Sha1 = one
			switch {
			case it.checksum == types.HttpNfcLeaseManifestEntryChecksumTypeSha1:
				e.Checksum, e.ChecksumType = one, string(it.checksum)
			case it.checksum == types.HttpNfcLeaseManifestEntryChecksumTypeSha256, f.SHA256Manifest:
				e.Checksum, e.ChecksumType = two, string(types.HttpNfcLeaseManifestEntryChecksumTypeSha256)
			}
		}
		out = append(out, e)
	}
	return out
}

// wrong changes a hash in hexadecimal.
func wrong(hex string) string {
	if hex[0] == '0' {
		return "1" + hex[1:]
	}
	return "0" + hex[1:]
}
