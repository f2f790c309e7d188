package vsphere

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// everyVM gives the simulator's VMs, sorted by name.
func everyVM(m *simulator.Model) []*simulator.VirtualMachine {
	var vms []*simulator.VirtualMachine
	for _, e := range m.Map().All("VirtualMachine") {
		vms = append(vms, e.(*simulator.VirtualMachine))
	}
	slices.SortFunc(vms, func(a, b *simulator.VirtualMachine) int { return strings.Compare(a.Name, b.Name) })
	return vms
}

// rename gives a VM a name as vCenter would hold it.
func rename(vm *simulator.VirtualMachine, name string) {
	vm.Name, vm.Config.Name, vm.Summary.Config.Name = name, name, name
}

func TestListVMs(t *testing.T) {
	t.Run("ESXi", func(t *testing.T) {
		c := dial(t, serve(t, simulator.ESX()))
		if a := c.About(); a.VCenter || a.FullName == "" || a.User == "" {
			t.Errorf("about %+v", a)
		}
		vms, err := c.ListVMs(within(t, time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if len(vms) != 2 || vms[0].Path != "/ha-datacenter/vm/ha-host_VM0" || vms[1].Name != "ha-host_VM1" {
			t.Errorf("got %+v", vms)
		}
		if vms[0].Host == "" || vms[0].CPUs == 0 || vms[0].InstanceUUID == "" || vms[0].PowerState != "poweredOn" {
			t.Errorf("incomplete: %+v", vms[0])
		}
	})
	t.Run("vCenter", func(t *testing.T) {
		m := simulator.VPX()
		m.Folder, m.App, m.Machine = 2, 1, 3
		cfg := serve(t, m)
		app := m.Map().Any("VirtualApp").(*simulator.VirtualApp)
		vms := everyVM(m)
		inApp := m.Map().Get(app.Vm[0]).(*simulator.VirtualMachine)
		inApp.Parent, inApp.ParentVApp = nil, &app.Self // as vCenter has it
		broken := vms[len(vms)-1]
		broken.Config, broken.Summary.Config, broken.Summary.Storage = nil, types.VirtualMachineConfigSummary{}, nil
		broken.Runtime.ConnectionState = types.VirtualMachineConnectionStateInaccessible
		rename(vms[2], `web %2f "ü" 100%25`)

		c := dial(t, cfg)
		if !c.About().VCenter {
			t.Error("not a vCenter")
		}
		got, err := c.ListVMs(within(t, time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(vms) {
			t.Fatalf("%d VMs of %d", len(got), len(vms))
		}
		if !slices.IsSortedFunc(got, func(a, b VMSummary) int { return strings.Compare(a.Path, b.Path) }) {
			t.Error("not sorted")
		}
		by := map[string]VMSummary{}
		for _, vm := range got {
			by[vm.MoRef] = vm
		}
		if p := by[inApp.Self.Value].Path; !strings.HasSuffix(p, "/"+app.Name+"/"+inApp.Name) || !strings.Contains(p, "/vm/") {
			t.Errorf("path in the vApp: %q", p)
		}
		odd := by[vms[2].Self.Value]
		if odd.Name != `web / "ü" 100%` || !strings.HasSuffix(odd.Path, `/web %2f "ü" 100%25`) {
			t.Errorf("name %q, path %q", odd.Name, odd.Path)
		}
		if b := by[broken.Self.Value]; b.Name != broken.Name || b.CPUs != 0 || b.Path == "" {
			t.Errorf("inaccessible VM: %+v", b)
		}
		if _, err := c.InspectVM(within(t, time.Minute), broken.Self.Value); err != nil {
			t.Errorf("inspect inaccessible VM: %v", err)
		}
	})
}

func TestFindVM(t *testing.T) {
	m := simulator.VPX()
	m.Datacenter, m.Machine, m.Folder = 2, 4, 1
	cfg := serve(t, m)
	vms := everyVM(m)
	// Two of one name in two datacenters; and names that ask for trouble.
	var one, two *simulator.VirtualMachine
	for _, vm := range vms {
		switch {
		case strings.HasPrefix(vm.Name, "DC0") && one == nil:
			one = vm
		case strings.HasPrefix(vm.Name, "DC1") && two == nil:
			two = vm
		}
	}
	rename(one, "web")
	rename(two, "web")
	slash := vms[2]
	rename(slash, "a%2fb [x] ü 50%25")
	c := dial(t, cfg)
	ctx := within(t, time.Minute)
	list, err := c.ListVMs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]VMSummary{}
	for _, vm := range list {
		by[vm.MoRef] = vm
	}
	first, second, odd := by[one.Self.Value], by[two.Self.Value], by[slash.Self.Value]
	plain := by[vms[4].Self.Value]
	_, relative, _ := strings.Cut(plain.Path, "/vm/")

	for _, tt := range []struct{ name, path, want string }{
		{"full path", first.Path, first.MoRef},
		{"the other of the same name", second.Path, second.MoRef},
		{"trailing slash", first.Path + "/", first.MoRef},
		{"full path without its first slash", strings.TrimPrefix(first.Path, "/"), first.MoRef},
		{"escaped slash", odd.Path, odd.MoRef},
		{"escaped in capitals", strings.Replace(odd.Path, "%2f", "%2F", 1), odd.MoRef},
		{"plain per cent sign", strings.Replace(odd.Path, "%25", "%", 1), odd.MoRef},
		{"name", "a%2fb [x] ü 50%25", odd.MoRef},
		{"name as a person writes it", "a/b [x] ü 50%", odd.MoRef},
		{"unique name", plain.Name, plain.MoRef},
		{"relative to the VM folder", relative, plain.MoRef},
		{"moref", "moref:" + plain.MoRef, plain.MoRef},
		{"uuid", strings.ToUpper(plain.InstanceUUID), plain.MoRef},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := c.FindVM(ctx, tt.path)
			if err != nil {
				t.Fatal(err)
			}
			if got != by[tt.want] {
				t.Errorf("got %+v, want %+v", got, by[tt.want])
			}
		})
	}
	cfg.Datacenter = "DC1"
	if strings.HasPrefix(plain.Name, "DC1") {
		cfg.Datacenter = "DC0"
	}
	in := dial(t, cfg)
	if got, err := in.FindVM(ctx, plain.Path); err != nil || got.MoRef != plain.MoRef {
		t.Errorf("the full path of one in another datacenter: %+v, %v", got, err)
	}
	if got, err := in.FindVM(ctx, "web"); err != nil || (got.MoRef == second.MoRef) != (cfg.Datacenter == "DC1") {
		t.Errorf("the one of two that is in the datacenter: %+v, %v", got, err)
	}
	if _, err := in.FindVM(ctx, plain.Name); problem.KindOf(err) != problem.NotFound ||
		!strings.Contains(err.Error(), fmt.Sprintf("no such VM in datacenter %q (give the full path, %s,", cfg.Datacenter, plain.Path)) {
		t.Errorf("one in another datacenter: %v", err)
	}

	for _, tt := range []struct {
		name, path string
		kind       problem.Kind
		says       []string
	}{
		{"ambiguous", "web", problem.Invalid, []string{first.Path, second.Path}},
		{"misspelt", plain.Name + "x", problem.NotFound, []string{"did you mean", plain.Path}},
		{"nothing alike", "zzzzzzzzzzzzzzzzzzzzzzzzzzz", problem.NotFound, []string{"list the VMs"}},
		{"folder", first.Path[:strings.LastIndex(first.Path, "/")], problem.NotFound, nil},
		{"absolute name", "/web", problem.NotFound, nil},
		{"empty", " / ", problem.Invalid, nil},
		{"moref of nothing", "moref:vm-99999", problem.NotFound, []string{"vm-99999"}},
		{"moref with rubbish", "moref:<a>&\x01", problem.NotFound, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := c.FindVM(ctx, tt.path)
			if err == nil {
				t.Fatal("found")
			}
			if k := problem.KindOf(err); k != tt.kind {
				t.Errorf("kind %d, want %d: %v", k, tt.kind, err)
			}
			for _, s := range tt.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
		})
	}
}

func TestMatch(t *testing.T) {
	vm := func(path, uuid string) VMSummary {
		e := elements(path)
		return VMSummary{Path: path, Name: e[len(e)-1], MoRef: "vm-" + path, InstanceUUID: uuid}
	}
	vms := []VMSummary{
		vm("/dc1/vm/web", "u1"), vm("/dc2/vm/web", "u2"), vm("/dc1/vm/prod/db", "u3"), vm("/dc2/vm/prod/db", "u4"),
		vm("/dc1/vm/u3", "u5"), vm("/dc1/vm/only", "u6"), vm("/dc1/vm/dc2%2fvm%2fweb", "u7"),
		vm("/emea/dc4/vm/prod/app", "u8"),
	}
	for _, tt := range []struct {
		path, dc string
		want     []string
	}{
		{"/dc1/vm/web", "", []string{"u1"}},
		{"web", "", []string{"u1", "u2"}},
		{"web", "dc2", []string{"u2"}},
		{"web", "/dc2", []string{"u2"}},
		{"web", "dc3", nil}, // never a guess
		{"only", "dc2", nil},
		{"/dc1/vm/only", "dc2", []string{"u6"}},
		{"app", "", []string{"u8"}},
		{"app", "dc4", []string{"u8"}},
		{"app", "/emea/dc4", []string{"u8"}},
		{"app", "emea", nil},
		{"app", "dc1/emea/dc4", nil},
		{"prod/app", "dc4", []string{"u8"}},
		{"prod/db", "", []string{"u3", "u4"}},
		{"prod/db", "dc1", []string{"u3"}},
		{"dc1/vm/prod/db", "", []string{"u3"}},
		{"u3", "", []string{"u3"}}, // the UUID wins over the name
		{"db", "dc2", []string{"u4"}},
		{"dc2/vm/web", "", []string{"u2"}}, // a path wins over a name with slashes
		{"/web", "", nil},
		{"WEB", "", nil},
	} {
		var got []string
		for _, vm := range match(vms, tt.path, tt.dc) {
			got = append(got, vm.InstanceUUID)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%q in %q: got %v, want %v", tt.path, tt.dc, got, tt.want)
		}
	}
}

func TestPathsOfHostileInventory(t *testing.T) {
	ref := func(kind, value string) types.ManagedObjectReference {
		return types.ManagedObjectReference{Type: kind, Value: value}
	}
	object := func(self types.ManagedObjectReference, name any, parent any) types.ObjectContent {
		o := types.ObjectContent{Obj: self}
		if name != nil {
			o.PropSet = append(o.PropSet, types.DynamicProperty{Name: "name", Val: name})
		}
		if parent != nil {
			o.PropSet = append(o.PropSet, types.DynamicProperty{Name: "parent", Val: parent})
		}
		return o
	}
	root := ref("Folder", "root")
	a, b, vm := ref("Folder", "a"), ref("Folder", "b"), ref("VirtualMachine", "vm-1")
	for _, tt := range []struct {
		name    string
		objects []types.ObjectContent
		want    string
	}{
		{"plain", []types.ObjectContent{object(a, "A", root), object(vm, "x", a)}, "/A/x"},
		{"loop", []types.ObjectContent{object(a, "A", b), object(b, "B", a), object(vm, "x", a)}, ""},
		{"own parent", []types.ObjectContent{object(vm, "x", vm)}, ""},
		{"parent unseen", []types.ObjectContent{object(vm, "x", a)}, "/x"},
		{"no parent", []types.ObjectContent{object(vm, "x", nil)}, "/x"},
		{"wrong types", []types.ObjectContent{object(vm, 7, "a")}, ""},
		{"slash unescaped", []types.ObjectContent{object(vm, "../x", root)}, "/..%2fx"},
	} {
		got := newInventory(root, tt.objects).path(vm, 0)
		if tt.want == "" {
			if strings.Count(got, "/") > maxDepth+1 {
				t.Errorf("%s: %d elements", tt.name, strings.Count(got, "/"))
			}
		} else if got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestInspectVM(t *testing.T) {
	m := simulator.VPX()
	m.Portgroup = 1
	cfg := serve(t, m)
	vm := everyVM(m)[0]
	yes := true
	var cd *types.VirtualCdrom
	for _, d := range vm.Config.Hardware.Device {
		switch v := d.(type) {
		case *types.VirtualCdrom:
			cd = v
		case *types.VirtualDisk:
			v.Backing.(*types.VirtualDiskFlatVer2BackingInfo).ContentId = "abc"
		}
	}
	cd.Backing = &types.VirtualCdromIsoBackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{
		FileName: "[LocalDS_0] iso/debian.iso", Datastore: &vm.Datastore[0],
	}}
	vm.Config.Firmware = "efi"
	vm.Config.BootOptions = &types.VirtualMachineBootOptions{EfiSecureBootEnabled: &yes}
	vm.Config.KeyId = &types.CryptoKeyId{KeyId: "k"}
	vm.Config.Hardware.Device = append(vm.Config.Hardware.Device, &types.VirtualTPM{VirtualDevice: types.VirtualDevice{Key: 11000}})
	vm.Summary.Config.Template, vm.Config.Template = true, true

	c := dial(t, cfg)
	ctx := within(t, time.Minute)
	got, err := c.InspectVM(ctx, vm.Self.Value)
	if err != nil {
		t.Fatal(err)
	}
	if got.Firmware != "efi" || !got.SecureBoot || !got.Encrypted || !got.HasTPM || got.CoresPerSocket != 1 ||
		got.HardwareVersion == "" || got.ChangeVersion == "" || got.BIOSUUID == "" {
		t.Errorf("got %+v", got)
	}
	if len(got.Disks) != 1 || got.Disks[0].ContentID != "abc" || got.Disks[0].Capacity != 10<<30 || !got.Disks[0].Thin ||
		got.Disks[0].Controller != "ParaVirtualSCSIController" || got.Disks[0].Datastore != "LocalDS_0" {
		t.Errorf("disks %+v", got.Disks)
	}
	if len(got.NICs) != 1 || got.NICs[0].Type != "e1000" || got.NICs[0].Network != "DC0_DVPG0" || got.NICs[0].MAC == "" {
		t.Errorf("nics %+v", got.NICs)
	}
	if len(got.CDROMs) != 1 || got.CDROMs[0].ISO != "[LocalDS_0] iso/debian.iso" {
		t.Errorf("cdroms %+v", got.CDROMs)
	}
	var names []string
	for _, b := range got.Blockers {
		names = append(names, fmt.Sprintf("%s/%v/%v/%v", b.What, b.PowerState, b.Media, b.Certain))
		if b.Advice == "" {
			t.Errorf("no advice: %+v", b)
		}
	}
	want := []string{
		"it is a template/false/false/true", "it is encrypted/false/false/true", "it has a virtual TPM/false/false/true",
		"the VM is powered on/true/false/true",
		"cdrom-203 holds the image [LocalDS_0] iso/debian.iso; if that file is gone, the host refuses the export/false/true/false",
	}
	if !slices.Equal(names, want) {
		t.Errorf("blockers\n%s\nwant\n%s", strings.Join(names, "\n"), strings.Join(want, "\n"))
	}

	m.Map().Get(vm.Datastore[0]).(*simulator.Datastore).Summary.Accessible = false
	got, err = c.InspectVM(ctx, vm.Self.Value)
	if err != nil {
		t.Fatal(err)
	}
	if last := got.Blockers[len(got.Blockers)-1]; !last.Media || !last.Certain {
		t.Errorf("image on a datastore that is down: %+v", last)
	}
}

// pages makes every property collector round come one object at a time, and
// loses the round once after three pages.
type pages struct {
	soap.RoundTripper
	calls, lost int
}

func (p *pages) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	switch r := req.(type) {
	case *methods.RetrievePropertiesExBody:
		r.Req.Options.MaxObjects = 1
	case *methods.ContinueRetrievePropertiesExBody:
		if p.calls++; p.calls == 3 {
			p.lost++
			return soap.WrapVimFault(&types.InvalidArgument{InvalidProperty: "token"})
		}
	}
	return p.RoundTripper.RoundTrip(ctx, req, res)
}

func TestListVMsInPages(t *testing.T) {
	m := simulator.VPX()
	c := dial(t, serve(t, m))
	p := &pages{RoundTripper: c.rt}
	c.rt = p
	vms, err := c.ListVMs(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if len(vms) != 4 || p.calls < 8 || p.lost != 1 {
		t.Errorf("%d VMs in %d pages, lost %d", len(vms), p.calls, p.lost)
	}
	p.RoundTripper = broken{}
	if _, err := c.ListVMs(t.Context()); err == nil {
		t.Error("no error")
	}
}

// broken answers nothing.
type broken struct{}

func (broken) RoundTrip(context.Context, soap.HasFault, soap.HasFault) error {
	return errors.New("no answer")
}

// BenchmarkListVMs5000 has a target: under 3 s/op.
func BenchmarkListVMs5000(b *testing.B) {
	const n = 5000
	m := simulator.VPX()
	cfg := serve(b, m)
	vms := everyVM(m)
	folder := m.Map().Get(*vms[0].Parent).(*simulator.Folder)
	for i := len(vms); i < n; i++ {
		// Copies: creating VMs properly takes the simulator minutes.
		vm := &simulator.VirtualMachine{VirtualMachine: vms[0].VirtualMachine}
		vm.Self.Value = fmt.Sprintf("vm-copy-%d", i)
		vm.Name = fmt.Sprintf("copy %d", i)
		m.Map().Put(vm)
		folder.ChildEntity = append(folder.ChildEntity, vm.Self)
	}
	c := dial(b, cfg)
	for b.Loop() {
		vms, err := c.ListVMs(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if len(vms) != n {
			b.Fatalf("%d VMs", len(vms))
		}
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/op")
}
