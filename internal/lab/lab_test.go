package lab

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/nfc"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/ovf"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
	ourovf "github.com/hyper2kvm/hyper2kvm/internal/ovf"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const two = "/DC0/vm/test/two"

func start(t testing.TB, opts Options) *Lab {
	t.Helper()
	opts.ExtraVMs = append(opts.ExtraVMs, VMSpec{Path: two, UEFI: true, Disks: []DiskSpec{
		{Capacity: 3*mib + 7*sectorSize, Pattern: PatternRandom, Seed: 1},
		{Capacity: 2 * mib, Pattern: PatternText, Seed: 2},
	}})
	l, err := Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if _, err := os.Stat(l.dir); err == nil {
			t.Error("the lab's folder is left behind")
		}
	})
	return l
}

// login connects with verified TLS.
func login(t testing.TB, l *Lab) *govmomi.Client {
	t.Helper()
	u := l.URL()
	u.User = url.UserPassword(l.Username(), l.Password())
	sc := soap.NewClient(u, false)
	if err := sc.SetRootCAs(l.CAFile()); err != nil {
		t.Fatal(err)
	}
	c, err := newClient(t, sc)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Login(t.Context(), u.User); err != nil {
		t.Fatal(err)
	}
	return c
}

func vmRef(t testing.TB, l *Lab, c *govmomi.Client, path string) *object.VirtualMachine {
	t.Helper()
	return object.NewVirtualMachine(c.Client, types.ManagedObjectReference{Type: "VirtualMachine", Value: l.MoRef(path)})
}

func open(t testing.TB, vm *object.VirtualMachine) (*nfc.Lease, *nfc.LeaseInfo) {
	t.Helper()
	lease, err := vm.Export(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	info, err := lease.Wait(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return lease, info
}

// hostClient trusts the ESXi host by the lease's thumbprint only.
func hostClient(t testing.TB, print string) *http.Client {
	tr := &http.Transport{DisableCompression: true, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true,
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			sum := sha1.Sum(raw[0])
			if colons(sum[:]) != print {
				return errors.New("certificate is not the lease's")
			}
			return nil
		},
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// get fetches a file of a lease.
func get(t testing.TB, l *Lab, address, byteRange string) (*http.Response, []byte, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	if byteRange != "" {
		req.Header.Set("Range", byteRange)
	}
	resp, err := hostClient(t, l.HostThumbprint()).Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

func served(t testing.TB, l *Lab, vm string, n int) []byte {
	t.Helper()
	s, err := l.Stream(vm, n)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, s.Size())
	if _, err := s.ReadAt(b, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return b
}

func wantFault[F types.BaseMethodFault](t testing.TB, err error) F {
	t.Helper()
	var f F
	if err == nil {
		t.Fatalf("no error, want %T", f)
	}
	if _, ok := fault.As(err, &f); !ok {
		t.Fatalf("error %v, want %T", err, f)
	}
	return f
}

// TestExport is what govc export.ovf does, with govmomi's own client, for every
// kind of VM that can be exported.
func TestExport(t *testing.T) {
	l := start(t, Options{ExtraVMs: []VMSpec{{Path: "/DC0/vm/test/head", Disks: []DiskSpec{
		{Capacity: 8 * mib, Pattern: PatternEmpty, Head: bytes.Repeat([]byte("head "), 1<<20)},
	}}}})
	c := login(t, l)
	for _, spec := range append(SpecialVMs(), l.opts.ExtraVMs...) {
		if spec.PoweredOn || spec.Template || spec.ISOMissing || strings.Contains(spec.Path, "/Blocked/") {
			continue
		}
		t.Run(spec.Path, func(t *testing.T) {
			vm := vmRef(t, l, c, spec.Path)
			lease, info := open(t, vm)
			if info.LeaseTimeout != 300 {
				t.Errorf("lease timeout %d", info.LeaseTimeout)
			}
			updater := lease.StartUpdater(t.Context(), info)
			dir := t.TempDir()
			var cdp types.OvfCreateDescriptorParams
			disks := 0
			for i, item := range info.Items {
				file := filepath.Join(dir, item.Path)
				if err := lease.DownloadFile(t.Context(), file, item, soap.Download{}); err != nil {
					t.Fatal(err)
				}
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				f := item.File()
				f.Size = int64(len(data))
				cdp.OvfFiles = append(cdp.OvfFiles, f)
				if !*info.DeviceUrl[i].Disk {
					if info.DeviceUrl[i].FileSize != int64(len(data)) {
						t.Errorf("%s has %d bytes, announced %d", item.Path, len(data), info.DeviceUrl[i].FileSize)
					}
					if strings.HasSuffix(item.Path, ".nvram") && !bytes.Equal(data, l.NVRAM(spec.Path)) {
						t.Error("the NVRAM file differs")
					}
					continue
				}
				if info.DeviceUrl[i].FileSize != 0 {
					t.Error("a disk has a file size")
				}
				if !bytes.Equal(data, served(t, l, spec.Path, disks)) {
					t.Errorf("disk %d is not the stream", disks)
				}
				compareGuest(t, file, l.Disk(spec.Path, disks))
				disks++
			}
			if disks != l.Disks(spec.Path) {
				t.Errorf("%d disks, want %d", disks, l.Disks(spec.Path))
			}
			manifest, err := lease.GetManifest(t.Context())
			if err != nil || len(manifest) != len(info.Items) {
				t.Fatalf("manifest %v, %v", manifest, err)
			}
			for i, m := range manifest {
				data, err := os.ReadFile(filepath.Join(dir, info.Items[i].Path))
				sum := sha1.Sum(data)
				if err != nil || m.Key != info.Items[i].DeviceId || m.Size != int64(len(data)) || m.Sha1 != hex.EncodeToString(sum[:]) || m.Checksum != "" {
					t.Errorf("manifest entry %+v", m)
				}
			}
			updater.Done()
			if err := lease.Complete(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, err = lease.GetManifest(t.Context())
			wantFault[*types.InvalidState](t, err)
			cdp.Name = vm.Name()
			checkDescriptor(t, c, vm, cdp)
		})
	}
	if n := l.OpenLeases(); n != 0 {
		t.Errorf("%d leases are open", n)
	}
	for _, r := range l.LeaseLog() {
		if r.State != LeaseCompleted || r.Closed.IsZero() {
			t.Errorf("lease %+v", r)
		}
	}
	if a := l.Actions(); len(a) > 0 {
		t.Errorf("actions %v", a)
	}
}

func checkDescriptor(t *testing.T, c *govmomi.Client, vm *object.VirtualMachine, cdp types.OvfCreateDescriptorParams) {
	t.Helper()
	res, err := ovf.NewManager(c.Client).CreateDescriptor(t.Context(), vm, cdp)
	if err != nil {
		t.Fatal(err)
	}
	d, err := ourovf.ParseDescriptor([]byte(res.OvfDescriptor))
	if err != nil {
		t.Fatalf("%v\n%s", err, res.OvfDescriptor)
	}
	sizes := map[string]int64{}
	for _, f := range cdp.OvfFiles {
		sizes[f.Path] = f.Size
	}
	if err := d.Check(sizes); err != nil {
		t.Errorf("%v\n%s", err, res.OvfDescriptor)
	}
	env, err := ovf.Unmarshal(strings.NewReader(res.OvfDescriptor))
	if err != nil || env.VirtualSystem == nil || len(env.VirtualSystem.VirtualHardware) != 1 {
		t.Errorf("govmomi reads %+v, %v", env, err)
	}
}

// compareGuest reads a stream with qemu-img and compares it with the content,
// where there is any and around it.
func compareGuest(t *testing.T, file string, want vmdk.Content) {
	t.Helper()
	if want.Size() > 64*gib {
		comparePieces(t, file, want)
		return
	}
	raw := filepath.Join(t.TempDir(), "raw")
	if out, err := exec.Command("qemu-img", "convert", "-f", "vmdk", "-O", "raw", file, raw).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v %s", err, out)
	}
	f, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() != want.Size() {
		t.Fatalf("guest disk has %d bytes, want %d (%v)", info.Size(), want.Size(), err)
	}
	for _, e := range append(slices.Clone(want.Extents()), vmdk.Range{Off: 0, Len: 1}, vmdk.Range{Off: want.Size() - 1, Len: 1}) {
		from, to := max(0, e.Off-mib), min(want.Size(), e.Off+e.Len+mib)
		for ; from < to; from += mib {
			n := min(mib, to-from)
			a, b := make([]byte, n), make([]byte, n)
			if _, err := f.ReadAt(a, from); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			if _, err := want.ReadAt(b, from); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			if !bytes.Equal(a, b) {
				t.Fatalf("guest disk differs near byte %d", from)
			}
		}
	}
}

// comparePieces is compareGuest for a disk that takes long to write out, holes
// or not: it reads the data only, and checks that every grain is sound.
func comparePieces(t *testing.T, file string, want vmdk.Content) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := vmdk.CheckGrains(t.Context(), f, nil); err != nil {
		t.Fatal(err)
	}
	extents := want.Extents()
	for _, e := range []vmdk.Range{extents[0], extents[len(extents)/2], extents[len(extents)-1]} {
		raw := filepath.Join(t.TempDir(), "raw")
		first, last := e.Off/sectorSize, (e.Off+e.Len)/sectorSize
		out, err := exec.Command("qemu-img", "dd", "-f", "vmdk", "-O", "raw", "bs=512",
			fmt.Sprintf("skip=%d", first), fmt.Sprintf("count=%d", last), "if="+file, "of="+raw).CombinedOutput()
		if err != nil {
			t.Fatalf("qemu-img: %v %s", err, out)
		}
		got, err := os.ReadFile(raw)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, e.Len)
		if _, err := want.ReadAt(b, e.Off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(got, b) {
			t.Errorf("guest disk differs near byte %d", e.Off)
		}
	}
}

func TestInventory(t *testing.T) {
	begun := time.Now()
	l := start(t, Options{Inventory: Full})
	t.Logf("started in %v", time.Since(begun))
	c := login(t, l)
	f := find.NewFinder(c.Client)
	all, err := f.VirtualMachineList(t.Context(), "/DC0/vm/...")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != fullInventory+1 {
		t.Errorf("%d VMs", len(all))
	}
	for _, s := range SpecialVMs() {
		if !slices.ContainsFunc(all, func(vm *object.VirtualMachine) bool { return vm.InventoryPath == s.Path }) {
			t.Errorf("%s is not found by path", s.Path)
		}
	}
	check := func(path string, props []string, ok func(mo.VirtualMachine) bool) {
		t.Helper()
		var vm mo.VirtualMachine
		if err := vmRef(t, l, c, path).Properties(t.Context(), vmRef(t, l, c, path).Reference(), props, &vm); err != nil || !ok(vm) {
			t.Errorf("%s: %+v, %v", path, vm, err)
		}
	}
	check("/DC0/vm/Templates/golden", []string{"config.template"}, func(v mo.VirtualMachine) bool { return v.Config.Template })
	check("/DC0/vm/Production/running01", []string{"runtime.powerState", "guest.toolsRunningStatus"}, func(v mo.VirtualMachine) bool {
		return v.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn && v.Guest.ToolsRunningStatus == "guestToolsRunning"
	})
	check("/DC0/vm/Lab/snapshots01", []string{"snapshot"}, func(v mo.VirtualMachine) bool {
		return v.Snapshot != nil && len(v.Snapshot.RootSnapshotList) == 1 && len(v.Snapshot.RootSnapshotList[0].ChildSnapshotList) == 1
	})
	check("/DC0/vm/Lab/thin-2tib", []string{"config.hardware.device"}, func(v mo.VirtualMachine) bool {
		d := object.VirtualDeviceList(v.Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil))
		return len(d) == 1 && d[0].(*types.VirtualDisk).CapacityInBytes == 2*tib
	})
	check("/DC0/vm/Windows/win2022", []string{"config.firmware", "config.bootOptions"}, func(v mo.VirtualMachine) bool {
		return v.Config.Firmware == "efi" && *v.Config.BootOptions.EfiSecureBootEnabled
	})
}

func TestContent(t *testing.T) {
	for name, d := range map[string]DiskSpec{
		"text":   {Capacity: mib + 3*sectorSize},
		"random": {Capacity: mib, Pattern: PatternRandom},
		"mixed":  {Capacity: 4 * mib, Pattern: PatternMixed},
		"sparse": {Capacity: 64*mib + sectorSize, Pattern: PatternSparse},
		"empty":  {Capacity: mib, Pattern: PatternEmpty},
		"front":  {Capacity: mib, Pattern: PatternRandom, Allocated: 70000},
		// A head that ends in the pattern, after it, among its pieces, and with
		// the disk.
		"head on text":   {Capacity: mib, Head: bytes.Repeat([]byte("head "), 1001)},
		"head on front":  {Capacity: mib, Pattern: PatternRandom, Allocated: 70000, Head: bytes.Repeat([]byte("head "), 20001)},
		"head on sparse": {Capacity: 64*mib + sectorSize, Pattern: PatternSparse, Head: bytes.Repeat([]byte("head "), 3<<20/5)},
		"head on empty":  {Capacity: mib, Pattern: PatternEmpty, Head: []byte("head")},
		"all head":       {Capacity: sectorSize, Pattern: PatternEmpty, Head: bytes.Repeat([]byte("h"), sectorSize)},
	} {
		t.Run(name, func(t *testing.T) {
			d.Seed = 7
			c := newContent(d)
			whole := make([]byte, d.Capacity)
			if n, err := c.ReadAt(whole, 0); n != len(whole) || err != nil {
				t.Fatal(n, err)
			}
			under := d
			under.Head = nil
			want := make([]byte, d.Capacity)
			if _, err := newContent(under).ReadAt(want, 0); err != nil {
				t.Fatal(err)
			}
			copy(want, d.Head)
			if !bytes.Equal(whole, want) {
				t.Error("it is not the head over the pattern")
			}
			end := int64(0)
			for i, e := range c.Extents() {
				if e.Off < end || i > 0 && e.Off == end || e.Len <= 0 || e.Off+e.Len > d.Capacity {
					t.Errorf("extent %d is %+v, after %d of %d bytes", i, e, end, d.Capacity)
				}
				end = e.Off + e.Len
			}
			outside := slices.Clone(whole)
			for _, e := range c.Extents() {
				clear(outside[e.Off : e.Off+e.Len])
			}
			if len(bytes.Trim(outside, "\x00")) > 0 {
				t.Error("there is something outside the extents")
			}
			part := make([]byte, 10007)
			for off := int64(0); off < d.Capacity; off += 99991 {
				n, err := c.ReadAt(part, off)
				if err != nil && (err != io.EOF || off+int64(n) != d.Capacity) {
					t.Fatal(err)
				}
				if !bytes.Equal(part[:n], whole[off:off+int64(n)]) {
					t.Fatalf("reading at %d gives other bytes", off)
				}
			}
			if name != "empty" && len(bytes.Trim(whole, "\x00")) == 0 {
				t.Error("it is empty")
			}
		})
	}
}

func TestDiskSpecRefused(t *testing.T) {
	for want, d := range map[string]DiskSpec{
		"capacity is 513, want a positive multiple of 512": {Capacity: 513},
		"has 1025 bytes allocated of 1024":                 {Capacity: 1024, Allocated: 1025},
		"has an unknown pattern":                           {Capacity: 512, Pattern: PatternSparse + 1},
		"has a head of 513 bytes, want at most its capacity, 512": {
			Capacity: sectorSize, Head: make([]byte, sectorSize+1),
		},
	} {
		l, err := Start(Options{ExtraVMs: []VMSpec{{Path: two, Disks: []DiskSpec{d}}}})
		if err == nil {
			l.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), two) {
			t.Errorf("%+v: error %v, want one about %s that says: %s", d, err, two, want)
		}
	}
}

func TestLogin(t *testing.T) {
	l := start(t, Options{Username: "me", Password: "secret"})
	u := l.URL()
	sc := soap.NewClient(u, true)
	c, err := newClient(t, sc)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Login(t.Context(), url.UserPassword("me", "wrong"))
	wantFault[*types.InvalidLogin](t, err)
	if err := c.Login(t.Context(), url.UserPassword("me", "secret")); err != nil {
		t.Fatal(err)
	}
	if l.Env()["GOVC_USERNAME"] != "me" || l.Env()["GOVC_URL"] != u.String() {
		t.Errorf("environment %v", l.Env())
	}
}

func TestSessionsExpire(t *testing.T) {
	l := start(t, Options{})
	c := login(t, l)
	vm := vmRef(t, l, c, two)
	lease, info := open(t, vm)
	l.ExpireSessions()
	err := lease.Progress(t.Context(), 1)
	wantFault[*types.NotAuthenticated](t, err)
	var props mo.VirtualMachine
	err = property.DefaultCollector(c.Client).RetrieveOne(t.Context(), vm.Reference(), []string{"name"}, &props)
	wantFault[*types.NotAuthenticated](t, err)
	if err := c.Login(t.Context(), url.UserPassword(l.Username(), l.Password())); err != nil {
		t.Fatal(err)
	}
	if err := lease.Progress(t.Context(), 2); err != nil {
		t.Errorf("the lease did not survive: %v", err)
	}
	if _, body, err := get(t, l, info.DeviceUrl[0].Url, ""); err != nil || len(body) == 0 {
		t.Error(err)
	}
}

func TestFailSOAP(t *testing.T) {
	l := start(t, Options{})
	c := login(t, l)
	lease, _ := open(t, vmRef(t, l, c, two))
	l.FailSOAP("HttpNfcLeaseProgress", 1, nil)
	if err := lease.Progress(t.Context(), 1); err == nil || soap.IsSoapFault(err) {
		t.Errorf("error %v, want a broken connection", err)
	}
	l.FailSOAP("HttpNfcLeaseProgress", 1, new(types.HostNotConnected))
	wantFault[*types.HostNotConnected](t, lease.Progress(t.Context(), 1))
	if err := lease.Progress(t.Context(), 7); err != nil {
		t.Error(err)
	}
	if p := l.LeaseLog()[0].Percents; !slices.Equal(p, []int{7}) {
		t.Errorf("percents %v", p)
	}
}

// TestRefusals: what ExportVm does not do.
func TestRefusals(t *testing.T) {
	l := start(t, Options{})
	c := login(t, l)
	export := func(path string) error {
		_, err := vmRef(t, l, c, path).Export(t.Context())
		return err
	}
	wantFault[*types.InvalidPowerState](t, export("running01"))
	wantFault[*types.FileNotFound](t, export("cdrom-gone"))
	wantFault[*types.NotSupported](t, export("golden"))
	wantFault[*types.NotSupported](t, export("encrypted01"))
	wantFault[*types.NotSupported](t, export("rdm01"))
	l.SetFaults(two, Faults{NoPermission: true})
	if f := wantFault[*types.NoPermission](t, export(two)); f.PrivilegeId != "VApp.Export" {
		t.Errorf("privilege %q", f.PrivilegeId)
	}
	l.SetFaults(two, Faults{TaskInProgress: 1})
	wantFault[*types.TaskInProgress](t, export(two))
	if err := export(two); err != nil {
		t.Error(err)
	}
	l.SetFaults(two, Faults{LeaseFails: true})
	lease, err := vmRef(t, l, c, two).Export(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lease.Wait(t.Context(), nil); err == nil {
		t.Error("the lease became ready")
	}

	// Without the drive, the missing image does not matter.
	vm := vmRef(t, l, c, "cdrom-gone")
	devices, err := vm.Device(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.RemoveDevice(t.Context(), true, devices.SelectByType((*types.VirtualCdrom)(nil))...); err != nil {
		t.Fatal(err)
	}
	if err := export("cdrom-gone"); err != nil {
		t.Error(err)
	}
	if a := l.Actions(); !slices.Equal(a, []string{"ReconfigVM_Task /DC0/vm/Lab/cdrom-gone"}) {
		t.Errorf("actions %v", a)
	}
}

func TestLocked(t *testing.T) {
	l := start(t, Options{})
	c := login(t, l)
	vm := vmRef(t, l, c, two)
	first, _ := open(t, vm)
	second, _ := open(t, vm) // several at once work
	if n := l.OpenLeases(); n != 2 {
		t.Errorf("%d open leases", n)
	}
	locked := func() {
		t.Helper()
		_, err := vm.PowerOn(t.Context())
		wantFault[*types.TaskInProgress](t, err)
		_, err = vm.Destroy(t.Context())
		wantFault[*types.TaskInProgress](t, err)
		_, err = vm.Reconfigure(t.Context(), types.VirtualMachineConfigSpec{Annotation: "x"})
		wantFault[*types.TaskInProgress](t, err)
	}
	locked()
	if err := first.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	locked()
	if err := second.Abort(t.Context(), &types.LocalizedMethodFault{Fault: &types.RequestCanceled{}, LocalizedMessage: "enough"}); err != nil {
		t.Fatal(err)
	}
	if r := l.LeaseLog()[1]; r.State != LeaseAborted || r.AbortReason != "enough" || r.VM != two {
		t.Errorf("lease %+v", r)
	}
	task, err := vm.PowerOn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := l.Actions(); !slices.Equal(a, []string{"PowerOnVM_Task " + two}) {
		t.Errorf("actions %v", a)
	}
}

func TestSnapshotExport(t *testing.T) {
	l := start(t, Options{})
	c := login(t, l)
	vm := vmRef(t, l, c, "running01")
	task, err := vm.CreateSnapshot(t.Context(), "export", "", false, false)
	if err != nil {
		t.Fatal(err)
	}
	info, err := task.WaitForResult(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ref := info.Result.(types.ManagedObjectReference)
	lease, err := vm.ExportSnapshot(t.Context(), &ref)
	if err != nil {
		t.Fatal(err)
	}
	files, err := lease.Wait(t.Context(), nil)
	if err != nil || len(files.Items) != 2 {
		t.Fatal(files, err)
	}
	_, body, err := get(t, l, files.DeviceUrl[1].Url, "")
	if err != nil || !bytes.Equal(body, served(t, l, "running01", 1)) {
		t.Error("the bytes differ", err)
	}
	remove := types.RemoveSnapshot_Task{This: ref}
	_, err = methods.RemoveSnapshot_Task(t.Context(), c.Client, &remove)
	wantFault[*types.TaskInProgress](t, err)
	if err := lease.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	cdp := types.OvfCreateDescriptorParams{Name: "running01", Snapshot: &ref}
	for i, it := range files.Items {
		f := it.File()
		f.Size = int64(1000 + i)
		cdp.OvfFiles = append(cdp.OvfFiles, f)
	}
	checkDescriptor(t, c, vm, cdp)
	res, err := methods.RemoveSnapshot_Task(t.Context(), c.Client, &remove)
	if err != nil {
		t.Fatal(err)
	}
	if err := object.NewTask(c.Client, res.Returnval).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"CreateSnapshot_Task /DC0/vm/Production/running01", "RemoveSnapshot_Task /DC0/vm/Production/running01"}
	if a := l.Actions(); !slices.Equal(a, want) {
		t.Errorf("actions %v", a)
	}
}

// eventually waits for something that a timer of the lab does.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatal("it does not happen")
		case <-tick.C:
		}
	}
}

func TestLeaseExpires(t *testing.T) {
	l := start(t, Options{LeaseTimeout: 300 * time.Millisecond})
	c := login(t, l)
	vm := vmRef(t, l, c, two)
	lease, info := open(t, vm)
	if info.LeaseTimeout != 1 {
		t.Errorf("lease timeout %d", info.LeaseTimeout)
	}
	eventually(t, func() bool { return l.OpenLeases() == 0 })
	r := l.LeaseLog()[0]
	if lived := r.Closed.Sub(r.Opened); r.State != LeaseExpired || lived < 300*time.Millisecond {
		t.Errorf("lease %+v", r)
	}
	wantFault[*types.Timedout](t, lease.Progress(t.Context(), 1))
	eventually(t, func() bool {
		p, err := lease.Properties(t.Context(), "state", "error")
		return err == nil && p.State == types.HttpNfcLeaseStateError && p.Error != nil
	})
	if resp, _, err := get(t, l, info.DeviceUrl[0].Url, ""); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("its URL answers %v %v", resp, err)
	}

	// Renewed, it lives longer than its timeout.
	lease, _ = open(t, vm)
	begun := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for time.Since(begun) < 900*time.Millisecond {
		<-tick.C
		if err := lease.Progress(t.Context(), 5); err != nil {
			t.Fatal(err)
		}
	}
	if err := lease.Complete(t.Context()); err != nil {
		t.Error(err)
	}

	// Unless it has to die.
	l.SetFaults(two, Faults{LeaseExpiresAfter: 100 * time.Millisecond, LeaseExpireTimes: 1, BytesPerSecond: mib})
	lease, info = open(t, vm)
	if _, _, err := get(t, l, info.DeviceUrl[0].Url, ""); err == nil {
		t.Error("the stream outlives its lease")
	}
	wantFault[*types.Timedout](t, lease.Progress(t.Context(), 1))
	lease, _ = open(t, vm)
	if err := lease.Progress(t.Context(), 1); err != nil {
		t.Error(err)
	}
}

// TestStreamFaults: each fault is seen to act on disk 1, and disk 2 is well.
func TestStreamFaults(t *testing.T) {
	const place = 1 << 20
	l := start(t, Options{})
	c := login(t, l)
	want := served(t, l, two, 0)
	size := int64(len(want))
	type answer struct {
		status int
		body   []byte
		broken bool
		header http.Header
	}
	for name, tc := range map[string]struct {
		faults Faults
		ranges string
		check  func(t *testing.T, a answer)
		again  bool // the next request of the same file is right
	}{
		"cut": {faults: Faults{CutAfter: place, CutTimes: 1}, again: true, check: func(t *testing.T, a answer) {
			if !a.broken || !bytes.Equal(a.body, want[:place]) {
				t.Errorf("%d bytes, broken %v", len(a.body), a.broken)
			}
		}},
		"503": {faults: Faults{Unavailable: 1, RetryAfter: "3"}, again: true, check: func(t *testing.T, a answer) {
			if a.status != 503 || a.header.Get("Retry-After") != "3" {
				t.Errorf("status %d, %v", a.status, a.header)
			}
		}},
		"404": {faults: Faults{NotFound: 1}, again: true, check: func(t *testing.T, a answer) {
			if a.status != 404 {
				t.Errorf("status %d", a.status)
			}
		}},
		"403": {faults: Faults{Forbidden: 1}, again: true, check: func(t *testing.T, a answer) {
			if a.status != 403 {
				t.Errorf("status %d", a.status)
			}
		}},
		"short": {faults: Faults{ShortClean: place, ShortCleanTimes: 1}, again: true, check: func(t *testing.T, a answer) {
			if a.broken || !bytes.Equal(a.body, want[:place]) {
				t.Errorf("%d bytes, broken %v", len(a.body), a.broken)
			}
		}},
		"flip": {faults: Faults{FlipByteAt: place, FlipTimes: 1}, again: true, check: func(t *testing.T, a answer) {
			if a.broken || len(a.body) != len(want) || a.body[place] == want[place] {
				t.Fatalf("%d bytes, broken %v", len(a.body), a.broken)
			}
			a.body[place] = want[place]
			if !bytes.Equal(a.body, want) {
				t.Error("more than one byte is wrong")
			}
		}},
		"empty": {faults: Faults{EmptyDisk: 1}, check: func(t *testing.T, a answer) {
			if a.status != 200 || a.broken || len(a.body) != 0 {
				t.Errorf("status %d, %d bytes", a.status, len(a.body))
			}
		}},
		"range ignored": {ranges: "bytes=1000-", check: func(t *testing.T, a answer) {
			if a.status != 200 || !bytes.Equal(a.body, want) || a.header.Get("Content-Length") != "" {
				t.Errorf("status %d, %d bytes, %v", a.status, len(a.body), a.header)
			}
		}},
		"range": {ranges: "bytes=1000-", faults: Faults{Ranged: true}, check: func(t *testing.T, a answer) {
			if a.status != 206 || !bytes.Equal(a.body, want[1000:]) || !strings.HasPrefix(a.header.Get("Content-Range"), "bytes 1000-") {
				t.Errorf("status %d, %d bytes, %v", a.status, len(a.body), a.header)
			}
		}},
		"range of some": {ranges: "bytes=1000-1999", faults: Faults{Ranged: true}, check: func(t *testing.T, a answer) {
			if a.status != 206 || !bytes.Equal(a.body, want[1000:2000]) {
				t.Errorf("status %d, %d bytes", a.status, len(a.body))
			}
		}},
		"range beyond": {ranges: "bytes=99999999-", faults: Faults{Ranged: true}, check: func(t *testing.T, a answer) {
			if a.status != 416 {
				t.Errorf("status %d", a.status)
			}
		}},
		"lying header": {ranges: "bytes=1000-", faults: Faults{Ranged: true, WrongContentRange: true}, check: func(t *testing.T, a answer) {
			if a.status != 206 || !bytes.Equal(a.body, want[1000:]) || !strings.HasPrefix(a.header.Get("Content-Range"), "bytes 0-") {
				t.Errorf("status %d, %v", a.status, a.header)
			}
		}},
		"wrong bytes": {ranges: "bytes=1000-", faults: Faults{Ranged: true, WrongRangeBody: true}, check: func(t *testing.T, a answer) {
			if a.status != 206 || !bytes.Equal(a.body, want[:size-1000]) || !strings.HasPrefix(a.header.Get("Content-Range"), "bytes 1000-") {
				t.Errorf("status %d, %v", a.status, a.header)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			tc.faults.Disks = []int{1}
			l.SetFaults(two, tc.faults)
			lease, info := open(t, vmRef(t, l, c, two))
			fetch := func(i int) answer {
				resp, body, err := get(t, l, info.DeviceUrl[i].Url, tc.ranges)
				if resp == nil {
					t.Fatal(err)
				}
				return answer{resp.StatusCode, body, err != nil, resp.Header}
			}
			before := len(l.Requests())
			a := fetch(0)
			tc.check(t, a)
			r := l.Requests()[before]
			if r.VM != two || r.Disk != 1 || r.Status != a.status || r.Range != tc.ranges || a.status < 300 && r.Bytes != int64(len(a.body)) {
				t.Errorf("request %+v, %d bytes came", r, len(a.body))
			}
			m, err := lease.GetManifest(t.Context())
			if partial := a.broken || a.status >= 300 || len(a.body) == 0 || name == "short" || name == "range of some" || name == "wrong bytes"; err != nil || partial != (len(m) == 0) {
				t.Errorf("manifest %+v, %v", m, err)
			}
			if tc.again {
				if a := fetch(0); a.status != 200 || a.broken || !bytes.Equal(a.body, want) {
					t.Errorf("then: status %d, %d bytes, broken %v", a.status, len(a.body), a.broken)
				}
				m, err := lease.GetManifest(t.Context())
				if err != nil || len(m) != 1 || m[0].Sha1 != hash1(want) {
					t.Errorf("manifest %+v, %v", m, err)
				}
			}
			if tc.ranges == "" {
				if a := fetch(1); !bytes.Equal(a.body, served(t, l, two, 1)) {
					t.Error("the other disk is hit too")
				}
			}
			if name == "empty" {
				_, info = open(t, vmRef(t, l, c, two))
				if a := fetch(0); !bytes.Equal(a.body, want) {
					t.Error("a fresh lease is empty too")
				}
			}
		})
	}
}

func hash1(b []byte) string {
	sum := sha1.Sum(b)
	return hex.EncodeToString(sum[:])
}

func TestStall(t *testing.T) {
	l := start(t, Options{})
	c := login(t, l)
	l.SetFaults(two, Faults{StallAfter: 100000, StallTimes: 1})
	_, info := open(t, vmRef(t, l, c, two))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, info.DeviceUrl[0].Url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := hostClient(t, l.HostThumbprint()).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	head := make([]byte, 100000)
	if _, err := io.ReadFull(resp.Body, head); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return l.Requests()[0].Bytes == 100000 }) // counted once they are out
	l.SetFaults(two, Faults{})                                            // releases it
	rest, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(append(head, rest...), served(t, l, two, 0)) {
		t.Errorf("%d bytes more, %v", len(rest), err)
	}
}

func TestRate(t *testing.T) {
	l := start(t, Options{BytesPerSecond: 4 * mib})
	c := login(t, l)
	_, info := open(t, vmRef(t, l, c, two))
	begun := time.Now()
	if _, body, err := get(t, l, info.DeviceUrl[0].Url, ""); err != nil || len(body) < 3*mib {
		t.Fatal(len(body), err)
	}
	if took := time.Since(begun); took < 700*time.Millisecond {
		t.Errorf("3 MiB at 4 MiB/s took %v", took)
	}
}

func TestRecompress(t *testing.T) {
	l := start(t, Options{})
	c := login(t, l)
	l.SetFaults(two, Faults{Recompress: true})
	var bodies [][]byte
	for range 2 {
		lease, info := open(t, vmRef(t, l, c, two))
		for i := range 2 {
			_, body, err := get(t, l, info.DeviceUrl[i].Url, "")
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "disk.vmdk")
			if err := os.WriteFile(file, body, 0o600); err != nil {
				t.Fatal(err)
			}
			compareGuest(t, file, l.Disk(two, i))
			bodies = append(bodies, body)
			m, err := lease.GetManifest(t.Context())
			if err != nil || m[i].Sha1 != hash1(body) {
				t.Errorf("manifest %+v, %v", m, err)
			}
		}
		if err := lease.Complete(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if bytes.Equal(bodies[0], bodies[2]) || bytes.Equal(bodies[1], bodies[3]) {
		t.Error("two leases serve the same bytes")
	}
}

func TestManifest(t *testing.T) {
	l := start(t, Options{})
	c := login(t, l)
	body := served(t, l, two, 0)
	sum256 := sha256.Sum256(body)
	manifest := func(f Faults, ask bool) (types.HttpNfcLeaseManifestEntry, bool, error) {
		l.SetFaults(two, f)
		lease, info := open(t, vmRef(t, l, c, two))
		var asked error
		if ask {
			_, asked = methods.HttpNfcLeaseSetManifestChecksumType(t.Context(), c.Client, &types.HttpNfcLeaseSetManifestChecksumType{
				This: lease.Reference(), DeviceUrlsToChecksumTypes: []types.KeyValue{{Key: info.DeviceUrl[0].Key, Value: "sha256"}},
			})
		}
		if _, _, err := get(t, l, info.DeviceUrl[0].Url, ""); err != nil {
			t.Fatal(err)
		}
		m, err := lease.GetManifest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(m) == 0 {
			return types.HttpNfcLeaseManifestEntry{}, false, asked
		}
		return m[0], true, asked
	}
	good := hex.EncodeToString(sum256[:])
	if m, ok, err := manifest(Faults{}, true); err != nil || !ok || m.Checksum != good || m.ChecksumType != "sha256" || m.Sha1 != hash1(body) ||
		m.Capacity != l.Disk(two, 0).Size() || !m.Disk || m.PopulatedSize != l.Disk(two, 0).Size() {
		t.Errorf("asked: %+v %v", m, err)
	}
	if m, ok, _ := manifest(Faults{SHA256Manifest: true}, false); !ok || m.Checksum != good {
		t.Errorf("by itself: %+v", m)
	}
	if _, _, err := manifest(Faults{NoSHA256: true}, true); err == nil {
		t.Error("an old host knows SHA-256")
	}
	if _, ok, _ := manifest(Faults{NoManifest: true}, false); ok {
		t.Error("there is a manifest")
	}
	if m, ok, _ := manifest(Faults{NoManifestHash: true}, true); !ok || m.Sha1 != "" || m.Checksum != "" || m.Size != int64(len(body)) {
		t.Errorf("without hash: %+v", m)
	}
	if m, ok, _ := manifest(Faults{WrongManifestHash: true}, true); !ok || m.Sha1 == hash1(body) || m.Checksum == good || len(m.Sha1) != 40 {
		t.Errorf("wrong hash: %+v", m)
	}
}

func TestLeaseFaults(t *testing.T) {
	l := start(t, Options{})
	c := login(t, l)
	l.SetFaults(two, Faults{Thumbprint: "missing", StarHost: true, TargetID: func(int, string) string { return "../../etc/passwd" }})
	_, info := open(t, vmRef(t, l, c, two))
	d := info.DeviceUrl[0]
	if d.SslThumbprint != "" || !strings.HasPrefix(d.Url, "https://*:") || d.TargetId != "../../etc/passwd" {
		t.Errorf("device URL %+v", d)
	}
	_, port, _ := strings.Cut(l.HostAddr(), ":")
	if !strings.Contains(d.Url, "*:"+port+"/") {
		t.Errorf("%s does not keep the port %s", d.Url, port)
	}
	if want := "/" + l.MoRef(two) + "/VirtualLsiLogicController0:0"; d.Key != want {
		t.Errorf("key %q, want %q", d.Key, want)
	}
	l.SetFaults(two, Faults{Thumbprint: "wrong"})
	_, info = open(t, vmRef(t, l, c, two))
	if p := info.DeviceUrl[0].SslThumbprint; p == "" || p == l.HostThumbprint() {
		t.Errorf("thumbprint %q", p)
	}
}

// TestCloseWhileBusy: nothing is left when the lab ends under its clients.
func TestCloseWhileBusy(t *testing.T) {
	l := start(t, Options{})
	c := login(t, l)
	l.SetFaults(two, Faults{StallAfter: 1000})
	vm := vmRef(t, l, c, two)
	_, info := open(t, vm)
	done := make(chan error, 2)
	begun := make(chan struct{})
	go func() {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, info.DeviceUrl[0].Url, nil)
		if err != nil {
			done <- err
			return
		}
		resp, err := hostClient(t, l.HostThumbprint()).Do(req)
		if err != nil {
			done <- err
			return
		}
		defer resp.Body.Close()
		close(begun)
		_, err = io.Copy(io.Discard, resp.Body)
		done <- err
	}()
	pc, err := property.DefaultCollector(c.Client).Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan struct{}, 1)
	go func() {
		done <- property.Wait(t.Context(), pc, vm.Reference(), []string{"runtime.powerState"}, func([]types.PropertyChange) bool {
			seen <- struct{}{}
			return false
		})
	}()
	<-begun
	<-seen
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-done; err == nil {
			t.Error("a client was not told")
		}
	}
}

func TestCommand(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ready := filepath.Join(t.TempDir(), "env")
	var out, errs bytes.Buffer
	code := make(chan int, 1)
	go func() {
		code <- Command(ctx, []string{"-small", "-ready-file", ready, "-fault", "CutAfter=1000,CutTimes=2,Ranged,Disks=1+2@web01"}, &out, &errs)
	}()
	eventually(t, func() bool { _, err := os.Stat(ready); return err == nil })
	text, err := os.ReadFile(ready)
	if err != nil || !strings.Contains(string(text), "export GOVC_URL='https://127.0.0.1:") {
		t.Errorf("%s %v", text, err)
	}
	cancel()
	if c := <-code; c != 0 {
		t.Errorf("exit %d: %s", c, errs.String())
	}
	if _, err := os.Stat(ready); err == nil {
		t.Error("the ready file is left behind")
	}
	if !strings.Contains(out.String(), "/DC0/vm/Production/web01") {
		t.Errorf("it prints %s", out.String())
	}
	for _, args := range [][]string{{"-what"}, {"x"}, {"-fault", "Nope=1@web01"}} {
		if c := Command(t.Context(), args, io.Discard, io.Discard); c != 2 {
			t.Errorf("%v: exit %d", args, c)
		}
	}
}

// BenchmarkServe fetches a large stream that nothing caps.
func BenchmarkServe(b *testing.B) {
	const big = "/DC0/vm/test/big"
	l := start(b, Options{ExtraVMs: []VMSpec{{Path: big, Disks: []DiskSpec{{Capacity: 512 * mib, Pattern: PatternRandom}}}}})
	_, info := open(b, vmRef(b, l, login(b, l), big))
	client := hostClient(b, l.HostThumbprint())
	client.Transport.(*http.Transport).ReadBufferSize = 256 << 10
	buf := make([]byte, 256<<10)
	b.SetBytes(512 * mib)
	for b.Loop() {
		req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, info.DeviceUrl[0].Url, nil)
		if err != nil {
			b.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf); err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
	}
}
