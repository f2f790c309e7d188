package vsphere

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/hyper2kvm/hyper2kvm/internal/lab"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const (
	plainVM   = "/DC0/vm/test/plain"
	runningVM = "/DC0/vm/test/running"
	isoVM     = "/DC0/vm/test/iso"
	lostVM    = "/DC0/vm/test/iso gone"
)

// start runs a lab with a few small VMs and gives a client that trusts its
// vCenter, not its ESXi host, by authority only.
func start(t *testing.T, opts lab.Options) (*lab.Lab, *Client) {
	t.Helper()
	disk := lab.DiskSpec{Capacity: 1 << 20, Pattern: lab.PatternMixed}
	opts.ExtraVMs = []lab.VMSpec{
		{Path: plainVM, UEFI: true, Disks: []lab.DiskSpec{disk, {Capacity: 3<<20 + 512, Pattern: lab.PatternEmpty, Controller: "nvme"}}},
		{Path: runningVM, PoweredOn: true, Disks: []lab.DiskSpec{disk}},
		{Path: isoVM, CDROM: true, ISO: "debian.iso", Disks: []lab.DiskSpec{disk}},
		{Path: lostVM, CDROM: true, ISO: "gone.iso", ISOMissing: true, Disks: []lab.DiskSpec{disk}},
	}
	l, err := lab.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n := l.OpenLeases(); n != 0 {
			t.Errorf("%d leases left open", n)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	env := l.Env()
	cfg, err := ConfigFromEnv(func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	c, err := Connect(within(t, time.Minute), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l, c
}

// fetch reads an item and gives the SHA-256 of its bytes.
func fetch(ctx context.Context, l *Lease, item LeaseItem) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, item.URL.String(), nil)
	if err != nil {
		return "", err
	}
	resp, err := l.HTTPClient(item).Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	h := sha256.New()
	if _, err := io.Copy(h, resp.Body); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", errors.New(resp.Status)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func TestExport(t *testing.T) {
	for _, tt := range []struct {
		name   string
		faults lab.Faults
		plain  bool // no SHA-256
	}{
		{"plain", lab.Faults{}, false},
		{"star host", lab.Faults{StarHost: true}, false},
		{"old host", lab.Faults{NoSHA256: true}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, c := start(t, lab.Options{})
			ctx := within(t, time.Minute)
			vm, err := c.FindVM(ctx, plainVM)
			if err != nil {
				t.Fatal(err)
			}
			server.SetFaults(plainVM, tt.faults)
			lease, err := c.ExportVM(ctx, vm.MoRef)
			if err != nil {
				t.Fatal(err)
			}
			defer lease.Close(ctx, errors.New("test failed"))
			if (lease.ChecksumType() == "") != tt.plain {
				t.Errorf("checksum type %q", lease.ChecksumType())
			}
			hashes := map[string]string{}
			var disks, nvram int
			for _, item := range lease.Items() {
				sum, err := fetch(ctx, lease, item)
				if err != nil {
					t.Fatalf("%s: %v", item.Label, err)
				}
				hashes[item.Key] = sum
				switch item.Kind {
				case ItemDisk:
					want := server.Disk(plainVM, disks).Size()
					if sum != server.StreamSHA256(plainVM, disks) || item.Capacity != want || item.Size != 0 || item.Label == "" {
						t.Errorf("disk %d: %+v, capacity should be %d", disks, item, want)
					}
					disks++
				case ItemNVRAM:
					nvram++
					if item.Size != int64(len(server.NVRAM(plainVM))) {
						t.Errorf("nvram %+v", item)
					}
				}
			}
			if disks != 2 || nvram != 1 {
				t.Fatalf("%d disks, %d nvram", disks, nvram)
			}
			manifest, err := lease.Manifest(ctx)
			if err != nil || len(manifest) < 2 {
				t.Fatalf("manifest %+v, %v", manifest, err)
			}
			p := DescriptorParams{Name: "plain"}
			for _, e := range manifest {
				if !tt.plain && (e.ChecksumType != "sha256" || e.Checksum != hashes[e.Key]) || len(e.SHA1) != 40 {
					t.Errorf("entry %+v, read %s", e, hashes[e.Key])
				}
				p.Files = append(p.Files, DescriptorFile{Key: e.Key, Path: "f" + e.Checksum, Size: e.Size, Capacity: e.Capacity, PopulatedSize: e.PopulatedSize})
			}
			lease.SetPercent(80)
			if err := lease.Close(ctx, nil); err != nil {
				t.Fatal(err)
			}
			d, err := c.CreateDescriptor(ctx, vm.MoRef, p)
			if err != nil || !strings.Contains(string(d.XML), "Envelope") {
				t.Errorf("descriptor %q, %v", d.XML, err)
			}
			log := server.LeaseLog()
			if len(log) != 1 || log[0].State != lab.LeaseCompleted || log[0].Percents[len(log[0].Percents)-1] != 100 {
				t.Errorf("log %+v", log)
			}
		})
	}
}

func TestExportRefused(t *testing.T) {
	server, c := start(t, lab.Options{})
	ctx := within(t, time.Minute)
	for _, tt := range []struct {
		name, vm string
		faults   lab.Faults
		kind     problem.Kind
		busy     bool
		says     string
	}{
		{"running", runningVM, lab.Faults{}, problem.Conflict, false, "shut"},
		{"image gone", lostVM, lab.Faults{}, problem.Conflict, false, "remove_cdrom"},
		{"no permission", plainVM, lab.Faults{NoPermission: true}, problem.Unauthorized, false, "VApp.Export"},
		{"busy", plainVM, lab.Faults{TaskInProgress: 1}, problem.Conflict, true, ""},
		{"fails while opening", plainVM, lab.Faults{LeaseFails: true}, problem.Failed, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server.SetFaults(tt.vm, tt.faults)
			defer server.SetFaults(tt.vm, lab.Faults{})
			lease, err := c.ExportVM(ctx, server.MoRef(tt.vm))
			if err == nil {
				lease.Close(ctx, errors.New("unwanted"))
				t.Fatal("exported")
			}
			if tt.kind != problem.Failed && problem.KindOf(err) != tt.kind || errors.Is(err, ErrBusy) != tt.busy || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("kind %d: %v", problem.KindOf(err), err)
			}
			t.Log(err)
		})
	}
	t.Run("without the drive", func(t *testing.T) {
		removed, err := c.RemoveCDROMs(ctx, server.MoRef(lostVM))
		if err != nil || len(removed) != 1 || !strings.Contains(removed[0].ISO, "gone.iso") {
			t.Fatalf("removed %+v, %v", removed, err)
		}
		lease, err := c.ExportVM(ctx, server.MoRef(lostVM))
		if err != nil {
			t.Fatal(err)
		}
		if err := lease.Close(ctx, errors.New("enough")); err != nil {
			t.Error(err)
		}
		log := server.LeaseLog()
		if last := log[len(log)-1]; last.State != lab.LeaseAborted || !strings.Contains(last.AbortReason, "enough") {
			t.Errorf("log %+v", last)
		}
	})
	t.Run("media", func(t *testing.T) {
		lease, err := c.ExportVM(ctx, server.MoRef(isoVM))
		if err != nil {
			t.Fatal(err)
		}
		defer lease.Close(ctx, nil)
		kinds := map[ItemKind]int{}
		for _, i := range lease.Items() {
			kinds[i.Kind]++
		}
		if kinds[ItemDisk] != 1 || kinds[ItemMedia] != 1 {
			t.Errorf("items %+v", lease.Items())
		}
	})
}

func TestExportTrust(t *testing.T) {
	server, c := start(t, lab.Options{})
	ctx := within(t, time.Minute)
	server.SetFaults(plainVM, lab.Faults{Thumbprint: "wrong"})
	lease, err := c.ExportVM(ctx, server.MoRef(plainVM))
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Close(ctx, nil)
	_, err = fetch(ctx, lease, lease.Items()[0])
	if ce, ok := errors.AsType[*CertificateError](err); !ok || ce.SHA1 != server.HostThumbprint() || ce.SHA256 != server.HostThumbprintSHA256() {
		t.Errorf("got %v", err)
	}
}

// TestThumbprint: a server that no authority vouches for is accepted by its
// certificate's thumbprint, and by no other.
func TestThumbprint(t *testing.T) {
	server, _ := start(t, lab.Options{})
	env := server.Env()
	delete(env, "GOVC_TLS_CA_CERTS")
	cfg, err := ConfigFromEnv(func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		thumbprint string
		trusted    bool
	}{
		"none":          {"", false},
		"the host's":    {server.HostThumbprint(), false},
		"no thumbprint": {"trust me", false},
		"its own":       {server.Thumbprint(), true},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := cfg
			cfg.Thumbprint = tc.thumbprint
			c, err := Connect(within(t, time.Minute), cfg, nil)
			if tc.trusted {
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Close(context.Background()); err != nil {
					t.Error(err)
				}
				return
			}
			if ce, ok := errors.AsType[*CertificateError](err); !ok || ce.SHA1 != server.Thumbprint() {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestExportSnapshotOfRunningVM(t *testing.T) {
	server, c := start(t, lab.Options{})
	ctx := within(t, time.Minute)
	ref := server.MoRef(runningVM)
	snapshot, err := c.CreateSnapshot(ctx, ref, "mine", "")
	if err != nil {
		t.Fatal(err)
	}
	lease, err := c.ExportSnapshot(ctx, ref, snapshot)
	if err != nil {
		t.Fatal(err)
	}
	item := lease.Items()[0]
	sum, err := fetch(ctx, lease, item)
	if err != nil || sum != server.StreamSHA256(runningVM, 0) || item.Capacity != 1<<20 {
		t.Errorf("item %+v, hash %s, %v", item, sum, err)
	}
	if err := lease.Close(ctx, nil); err != nil {
		t.Error(err)
	}
	if _, err := c.CreateDescriptor(ctx, ref, DescriptorParams{Name: "x", SnapshotMoRef: snapshot}); err != nil {
		t.Error(err)
	}
	if err := c.RemoveSnapshot(ctx, snapshot); err != nil {
		t.Error(err)
	}
	if vm, err := c.InspectVM(ctx, ref); err != nil || vm.HasSnapshots || vm.PowerState != "poweredOn" {
		t.Errorf("left %+v, %v", vm.Snapshots, err)
	}
}

func TestLeaseOutlivesTroubles(t *testing.T) {
	server, c := start(t, lab.Options{LeaseTimeout: 2 * time.Second})
	ctx := within(t, time.Minute)
	lease, err := c.ExportVM(ctx, server.MoRef(plainVM))
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Close(ctx, errors.New("test failed"))
	// Longer than the lease lasts, with the session gone and calls failing.
	server.ExpireSessions()
	server.FailSOAP("HttpNfcLeaseProgress", 2, nil)
	server.FailSOAP("HttpNfcLeaseProgress", 1, &types.SystemError{})
	wait := time.NewTimer(4 * time.Second)
	defer wait.Stop()
	select {
	case <-lease.Done():
		t.Fatal(lease.Err())
	case <-wait.C:
	}
	server.ExpireSessions()
	if _, err := lease.Manifest(ctx); err != nil {
		t.Error(err)
	}
	server.ExpireSessions()
	server.FailSOAP("HttpNfcLeaseComplete", 1, nil)
	if err := lease.Close(ctx, nil); err != nil {
		t.Error(err)
	}
	if log := server.LeaseLog(); log[0].State != lab.LeaseCompleted {
		t.Errorf("log %+v", log)
	}
}

func TestLeaseExpiresOnTheHost(t *testing.T) {
	server, c := start(t, lab.Options{LeaseTimeout: 2 * time.Second})
	ctx := within(t, time.Minute)
	server.SetFaults(plainVM, lab.Faults{LeaseExpiresAfter: 300 * time.Millisecond, LeaseExpireTimes: 1})
	lease, err := c.ExportVM(ctx, server.MoRef(plainVM))
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-lease.Done():
	case <-ctx.Done():
		t.Fatal("not noticed")
	}
	if !errors.Is(lease.Err(), ErrLeaseLost) {
		t.Errorf("got %v", lease.Err())
	}
	if err := lease.Close(ctx, lease.Err()); err != nil {
		t.Error(err)
	}
	again, err := c.ExportVM(ctx, server.MoRef(plainVM))
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(ctx, nil); err != nil {
		t.Error(err)
	}
}

func TestLabInventory(t *testing.T) {
	server, c := start(t, lab.Options{Inventory: lab.Full})
	ctx := within(t, time.Minute)
	server.ExpireSessions()
	vms, err := c.ListVMs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(vms) < 200 {
		t.Errorf("%d VMs", len(vms))
	}
	for _, vm := range vms {
		if got := server.MoRef(vm.Path); got != vm.MoRef {
			t.Errorf("%s: the lab says %s, we say %s", vm.Path, got, vm.MoRef)
		}
	}
	for _, vm := range vms {
		if strings.Contains(vm.Path, "%2f") {
			if got, err := c.FindVM(ctx, vm.Path); err != nil || got.MoRef != vm.MoRef {
				t.Errorf("%s: %+v, %v", vm.Path, got, err)
			}
		}
	}
}
