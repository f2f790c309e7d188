package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

var (
	leaseRef = types.ManagedObjectReference{Type: "HttpNfcLease", Value: "lease-1"}
	vmRef    = types.ManagedObjectReference{Type: "VirtualMachine", Value: "vm-12"}
)

// host is what a lease sees of a server. Its fields may be changed under mu.
type host struct {
	mu      sync.Mutex
	state   types.HttpNfcLeaseState
	fault   *types.LocalizedMethodFault // the lease's error
	timeout int32                       // seconds
	urls    []types.HttpNfcLeaseDeviceUrl
	devices []types.BaseVirtualDevice
	sha256  bool
	renewed time.Time
	expires bool // the lease ends when it is not renewed
	gone    bool

	silent bool                    // no call is answered
	before func(name string) error // called without the lock; an error is the answer
	calls  []string
	aborts []string // messages
	done   int
}

func newHost() *host {
	yes, no := true, false
	number := int32(0)
	return &host{
		state: types.HttpNfcLeaseStateReady, timeout: 300, sha256: true,
		urls: []types.HttpNfcLeaseDeviceUrl{
			{Key: "/vm-12/ParaVirtualSCSIController0:0", Url: "https://esx1.example/nfc/t1/disk-0.vmdk", Disk: &yes, TargetId: "disk-0.vmdk", FileSize: 99},
			{Key: "/vm-12/nvram", Url: "https://*/nfc/t1/file-1.nvram", Disk: &no, TargetId: "vm.nvram", FileSize: 270840},
		},
		devices: []types.BaseVirtualDevice{
			&types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{VirtualController: types.VirtualController{VirtualDevice: types.VirtualDevice{Key: 1000}}}},
			&types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: 2000, ControllerKey: 1000, UnitNumber: &number, DeviceInfo: &types.Description{Label: "Hard disk 1"}}, CapacityInBytes: 10 << 30},
		},
	}
}

func (h *host) count(name string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, c := range h.calls {
		if c == name {
			n++
		}
	}
	return n
}

func (h *host) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// check is a lease operation's look at the lease; h.mu is held.
func (h *host) check() error {
	if h.expires && time.Since(h.renewed) > time.Duration(h.timeout)*time.Second {
		h.gone = true
	}
	if h.gone {
		return soapFault("", types.ManagedObjectNotFound{Obj: leaseRef})
	}
	h.renewed = time.Now()
	return nil
}

func (h *host) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	name := strings.TrimSuffix(callName(req), "Body")
	h.mu.Lock()
	before, silent := h.before, h.silent
	h.mu.Unlock()
	if silent {
		<-ctx.Done()
	}
	if before != nil {
		if err := before(name); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, name)
	switch r := res.(type) {
	case *methods.RetrievePropertiesExBody:
		ref := req.(*methods.RetrievePropertiesExBody).Req.SpecSet[0].ObjectSet[0].Obj
		o := types.ObjectContent{Obj: ref}
		switch ref {
		case vmRef:
			o.PropSet = []types.DynamicProperty{{Name: "config.hardware.device", Val: types.ArrayOfVirtualDevice{VirtualDevice: h.devices}}}
		case leaseRef:
			if h.gone {
				return soapFault("", types.ManagedObjectNotFound{Obj: leaseRef})
			}
			for _, c := range h.properties() {
				o.PropSet = append(o.PropSet, types.DynamicProperty{Name: c.Name, Val: c.Val})
			}
		}
		r.Res = &types.RetrievePropertiesExResponse{Returnval: &types.RetrieveResult{Objects: []types.ObjectContent{o}}}
	case *methods.CreatePropertyCollectorBody:
		r.Res = &types.CreatePropertyCollectorResponse{Returnval: types.ManagedObjectReference{Type: "PropertyCollector", Value: "own"}}
	case *methods.CreateFilterBody:
		r.Res = &types.CreateFilterResponse{}
	case *methods.DestroyPropertyCollectorBody:
		r.Res = &types.DestroyPropertyCollectorResponse{}
	case *methods.WaitForUpdatesExBody:
		r.Res = &types.WaitForUpdatesExResponse{}
		if v := req.(*methods.WaitForUpdatesExBody).Req.Version; v == string(h.state) {
			h.mu.Unlock()
			err := pause(ctx, updateWait)
			h.mu.Lock()
			return err
		}
		r.Res.Returnval = &types.UpdateSet{Version: string(h.state), FilterSet: []types.PropertyFilterUpdate{{
			ObjectSet: []types.ObjectUpdate{{Kind: types.ObjectUpdateKindModify, Obj: leaseRef, ChangeSet: h.properties()}},
		}}}
	case *methods.ExportVmBody:
		h.renewed = time.Now()
		r.Res = &types.ExportVmResponse{Returnval: leaseRef}
	case *methods.HttpNfcLeaseSetManifestChecksumTypeBody:
		if !h.sha256 {
			return soapFault("", types.MethodNotFound{})
		}
		r.Res = &types.HttpNfcLeaseSetManifestChecksumTypeResponse{}
	case *methods.HttpNfcLeaseProgressBody:
		if err := h.check(); err != nil {
			return err
		}
		h.calls = append(h.calls, fmt.Sprintf("percent %d", req.(*methods.HttpNfcLeaseProgressBody).Req.Percent))
		r.Res = &types.HttpNfcLeaseProgressResponse{}
	case *methods.HttpNfcLeaseGetManifestBody:
		if err := h.check(); err != nil {
			return err
		}
		r.Res = &types.HttpNfcLeaseGetManifestResponse{Returnval: []types.HttpNfcLeaseManifestEntry{
			{Key: "/vm-12/nvram", Sha1: "ABCD", Checksum: "EF", ChecksumType: "SHA256", Size: 7, Disk: true, Capacity: 8, PopulatedSize: 9},
		}}
	case *methods.HttpNfcLeaseCompleteBody:
		if err := h.check(); err != nil {
			return err
		}
		h.gone = true
		h.done++
		r.Res = &types.HttpNfcLeaseCompleteResponse{}
	case *methods.HttpNfcLeaseAbortBody:
		if err := h.check(); err != nil {
			return err
		}
		h.gone = true
		f := req.(*methods.HttpNfcLeaseAbortBody).Req.Fault
		h.aborts = append(h.aborts, f.LocalizedMessage)
		r.Res = &types.HttpNfcLeaseAbortResponse{}
	case *methods.LogoutBody:
		r.Res = &types.LogoutResponse{}
	default:
		return fmt.Errorf("unexpected call %s", name)
	}
	return nil
}

func (h *host) properties() []types.PropertyChange {
	p := []types.PropertyChange{{Name: "state", Val: h.state}}
	if h.fault != nil {
		p = append(p, types.PropertyChange{Name: "error", Val: *h.fault})
	}
	if h.state == types.HttpNfcLeaseStateReady {
		p = append(p, types.PropertyChange{Name: "info", Val: types.HttpNfcLeaseInfo{Lease: leaseRef, LeaseTimeout: h.timeout, DeviceUrl: h.urls}})
	}
	return p
}

// client gives a Client that talks to h.
func (h *host) client(t testing.TB) *Client {
	t.Helper()
	tr, err := newTrust(Config{})
	if err != nil {
		t.Fatal(err)
	}
	cookies, err := newJar()
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	s := &session{rt: h, log: log, login: func(context.Context) error { return nil }}
	_, stop := context.WithCancel(t.Context())
	c := &Client{
		api: api{rt: s, log: log}, session: s, trust: tr, jar: cookies, stop: stop,
		soap:   newSOAP(t, "https://vc.example:8443/sdk"),
		leases: map[*Lease]struct{}{}, calls: map[*context.CancelFunc]struct{}{},
		logout: func(context.Context) error { return nil },
	}
	c.soap.Transport = tr.transport("vc.example:8443", nil)
	return c
}

func (h *host) open(t testing.TB) (*Client, *Lease) {
	t.Helper()
	c := h.client(t)
	l, err := c.ExportVM(t.Context(), "vm-12")
	if err != nil {
		t.Fatal(err)
	}
	return c, l
}

func TestLeaseItems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		c, l := h.open(t)
		items := l.Items()
		if len(items) != 2 {
			t.Fatalf("got %+v", items)
		}
		disk, nvram := items[0], items[1]
		if disk.Kind != ItemDisk || disk.Capacity != 10<<30 || disk.Size != 0 || disk.Label != "Hard disk 1" || disk.TargetID != "disk-0.vmdk" || disk.URL.Host != "esx1.example" {
			t.Errorf("disk %+v", disk)
		}
		if nvram.Kind != ItemNVRAM || nvram.Capacity != 0 || nvram.Size != 270840 || nvram.URL.Host != "vc.example:8443" {
			t.Errorf("nvram %+v", nvram)
		}
		if l.ID() != "lease-1" || l.ChecksumType() != "sha256" || l.Err() != nil {
			t.Errorf("id %q, checksum %q, error %v", l.ID(), l.ChecksumType(), l.Err())
		}
		if l.HTTPClient(disk).Jar != nil || l.HTTPClient(nvram).Jar != http.CookieJar(c.jar) || l.HTTPClient(LeaseItem{}) != nil {
			t.Error("the session's cookie goes to the wrong host")
		}
		if tr := l.HTTPClient(disk).Transport.(*http.Transport); !tr.DisableCompression || tr.ReadBufferSize != 256<<10 || tr.ResponseHeaderTimeout == 0 ||
			tr.Proxy == nil || tr.Protocols.HTTP2() || l.HTTPClient(disk).Timeout != 0 {
			t.Error("wrong transport")
		}
		items[0].URL.Host = "evil"
		if l.Items()[0].URL.Host != "esx1.example" {
			t.Error("the items are not copies")
		}
		m, err := l.Manifest(t.Context())
		want := []ManifestEntry{{Key: "/vm-12/nvram", SHA1: "abcd", Checksum: "ef", ChecksumType: "sha256", Disk: true, Size: 7, Capacity: 8, PopulatedSize: 9}}
		if err != nil || !slices.Equal(m, want) {
			t.Errorf("manifest %+v, %v", m, err)
		}
		if err := l.Close(t.Context(), nil); err != nil {
			t.Error(err)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestOldHostHasNoSHA256(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		h.sha256 = false
		_, l := h.open(t)
		if l.ChecksumType() != "" {
			t.Errorf("got %q", l.ChecksumType())
		}
		l.Close(t.Context(), nil)
	})
}

func TestLeaseNotOpened(t *testing.T) {
	fileFault := &types.LocalizedMethodFault{Fault: &types.FileNotFound{FileFault: types.FileFault{File: "[ds] gone.iso"}}, LocalizedMessage: "File [ds] gone.iso was not found"}
	for _, tt := range []struct {
		name   string
		change func(h *host)
		kind   problem.Kind
		is     error
		says   string
		aborts int
	}{
		{"powered on", func(h *host) {
			h.before = answer("ExportVm", soapFault("", types.InvalidPowerState{ExistingState: types.VirtualMachinePowerStatePoweredOn}))
		}, problem.Conflict, nil, "poweredOn", 0},
		{"busy", func(h *host) { h.before = answer("ExportVm", soapFault("", types.TaskInProgress{})) }, problem.Conflict, ErrBusy, "", 0},
		{"error state", func(h *host) { h.state, h.fault = types.HttpNfcLeaseStateError, fileFault }, problem.Conflict, nil, "remove_cdrom", 1},
		{"error state, no reason", func(h *host) { h.state = types.HttpNfcLeaseStateError }, problem.Failed, nil, `"error"`, 1},
		{"done state", func(h *host) { h.state = types.HttpNfcLeaseStateDone }, problem.Failed, nil, `"done"`, 1},
		{"never ready", func(h *host) { h.state = types.HttpNfcLeaseStateInitializing }, problem.Failed, nil, "2m0s", 1},
		{"no files", func(h *host) { h.urls = nil }, problem.Failed, nil, "no files", 1},
		{"bad URL", func(h *host) { h.urls[1].Url = "file:///etc/passwd" }, problem.Failed, nil, "file", 1},
		{"key twice", func(h *host) { h.urls[1].Key = h.urls[0].Key }, problem.Failed, nil, "twice", 1},
		{"gone at once", func(h *host) {
			h.before = answer("WaitForUpdatesEx", soapFault("", types.ManagedObjectNotFound{Obj: leaseRef}))
		}, problem.NotFound, nil, "lease-1", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost()
				tt.change(h)
				c := h.client(t)
				_, err := c.ExportVM(t.Context(), "vm-12")
				if problem.KindOf(err) != tt.kind || !strings.Contains(fmt.Sprint(err), tt.says) {
					t.Errorf("kind %d, want %d: %v", problem.KindOf(err), tt.kind, err)
				}
				if tt.is != nil && !errors.Is(err, tt.is) {
					t.Errorf("%v is not %v", err, tt.is)
				}
				if len(h.aborts) != tt.aborts {
					t.Errorf("%d aborts, want %d: %q", len(h.aborts), tt.aborts, h.aborts)
				}
				if err := c.Close(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// answer makes every call of that name fail.
func answer(name string, err error) func(string) error {
	return func(n string) error {
		if n == name {
			return err
		}
		return nil
	}
}

func TestLeaseBecomesReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		h.state = types.HttpNfcLeaseStateInitializing
		timer := time.AfterFunc(45*time.Second, func() { h.set(func() { h.state = types.HttpNfcLeaseStateReady }) })
		defer timer.Stop()
		_, l := h.open(t)
		l.Close(t.Context(), nil)
	})
}

func TestCancelledExportIsAborted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		answered := make(chan struct{})
		h.before = func(name string) error {
			if name == "ExportVm" {
				<-answered
			}
			return nil
		}
		c := h.client(t)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		_, err := c.ExportVM(ctx, "vm-12")
		if problem.KindOf(err) != problem.Cancelled {
			t.Errorf("got %v", err)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("took %v to end", d)
		}
		close(answered)
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if len(h.aborts) != 1 {
			t.Errorf("aborts %q", h.aborts)
		}
	})
}

func TestCloseAbortsOpenLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		c, l := h.open(t)
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if len(h.aborts) != 1 {
			t.Errorf("aborts %q", h.aborts)
		}
		<-l.Done()
	})
}

func TestKeepalive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		h.expires = true
		_, l := h.open(t)
		l.SetPercent(-5)
		time.Sleep(61 * time.Second)
		l.SetPercent(40)
		l.SetPercent(30)
		time.Sleep(60 * time.Second)
		l.SetPercent(400)
		time.Sleep(time.Hour)
		synctest.Wait()
		for p, want := range map[int]int{0: 1, 40: 1, 30: 0, 100: 60} {
			if got := h.count(fmt.Sprintf("percent %d", p)); got != want {
				t.Errorf("%d times %d%%, want %d", got, p, want)
			}
		}
		if l.Err() != nil {
			t.Error(l.Err())
		}
		if err := l.Close(t.Context(), nil); err != nil {
			t.Error(err)
		}
	})
}

func TestKeepaliveOfShortLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		h.expires, h.timeout = true, 1
		_, l := h.open(t)
		time.Sleep(time.Minute)
		if l.Err() != nil {
			t.Error(l.Err())
		}
		if n := h.count("HttpNfcLeaseProgress"); n < 200 || n > 260 {
			t.Errorf("%d renewals in a minute, want one each 250 ms", n)
		}
		if err := l.Close(t.Context(), errors.New("x")); err != nil {
			t.Error(err)
		}
	})
}

func TestKeepaliveSurvivesOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		h.expires = true
		var mu sync.Mutex
		var down error
		h.before = func(string) error {
			mu.Lock()
			defer mu.Unlock()
			return down
		}
		_, l := h.open(t)
		outage := func(d time.Duration) {
			mu.Lock()
			down = io.ErrUnexpectedEOF
			mu.Unlock()
			time.Sleep(d)
			mu.Lock()
			down = nil
			mu.Unlock()
		}
		time.Sleep(90 * time.Second)
		outage(200 * time.Second)
		time.Sleep(10 * time.Second) // it is tried again within interval/8
		if l.Err() != nil {
			t.Fatal(l.Err())
		}
		h.mu.Lock()
		if d := time.Since(h.renewed); d > 10*time.Second {
			t.Errorf("last renewed %v ago", d)
		}
		h.mu.Unlock()
		// An outage longer than the lease lasts.
		began := time.Now()
		outage(400 * time.Second)
		<-l.Done()
		if !errors.Is(l.Err(), ErrLeaseLost) || time.Since(began) > 401*time.Second {
			t.Errorf("got %v after %v", l.Err(), time.Since(began))
		}
		if err := l.Close(t.Context(), l.Err()); err != nil {
			t.Error(err)
		}
	})
}

func TestKeepaliveHangingCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost()
		_, l := h.open(t)
		h.set(func() { h.silent = true })
		began := time.Now()
		<-l.Done()
		if d := time.Since(began); d < 300*time.Second || d > 340*time.Second {
			t.Errorf("lost after %v", d)
		}
		// Closing it is bounded although nothing answers.
		began = time.Now()
		if err := l.Close(t.Context(), l.Err()); err == nil {
			t.Error("no error")
		}
		if d := time.Since(began); d > closeTimeout+time.Second {
			t.Errorf("close took %v", d)
		}
	})
}

func TestLeaseLost(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(h *host)
	}{
		{"gone", func(h *host) { h.gone = true }},
		{"error state", func(h *host) { h.state = types.HttpNfcLeaseStateError }},
		{"done state", func(h *host) { h.state = types.HttpNfcLeaseStateDone }},
		{"timed out", func(h *host) { h.before = answer("HttpNfcLeaseProgress", soapFault("", types.Timedout{})) }},
		{"invalid state", func(h *host) { h.before = answer("HttpNfcLeaseProgress", soapFault("", types.InvalidState{})) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost()
				_, l := h.open(t)
				synctest.Wait()
				h.set(func() { tt.change(h) })
				began := time.Now()
				<-l.Done()
				if d := time.Since(began); d > maxInterval {
					t.Errorf("noticed after %v", d)
				}
				if !errors.Is(l.Err(), ErrLeaseLost) {
					t.Errorf("got %v", l.Err())
				}
				// It cannot be completed; the VM is released if that still goes.
				if err := l.Close(t.Context(), nil); !errors.Is(err, ErrLeaseLost) {
					t.Errorf("close: %v", err)
				}
				if h.done != 0 || !h.gone {
					t.Errorf("completed %d times, gone %v", h.done, h.gone)
				}
			})
		})
	}
	t.Run("noticed by the manifest", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := newHost()
			_, l := h.open(t)
			h.set(func() { h.gone = true })
			if _, err := l.Manifest(t.Context()); !errors.Is(err, ErrLeaseLost) {
				t.Errorf("got %v", err)
			}
			<-l.Done()
			if err := l.Close(t.Context(), l.Err()); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestLeaseClose(t *testing.T) {
	for _, tt := range []struct {
		name   string
		cause  error
		change func(h *host)
		done   int
		aborts []string
		is     error
		fails  bool
	}{
		{name: "complete", done: 1},
		{name: "abort", cause: errors.New("disk full"), aborts: []string{"disk full"}},
		{name: "complete, answer lost", done: 1, change: func(h *host) { h.before = once("HttpNfcLeaseComplete", io.EOF) }},
		{name: "complete, heard but answer lost", done: 1, change: func(h *host) { h.before = heard(h) }},
		{name: "progress fails", done: 1, change: func(h *host) { h.before = answer("HttpNfcLeaseProgress", io.EOF) }},
		{name: "complete refused", aborts: []string{"no"}, fails: true, change: func(h *host) {
			h.before = answer("HttpNfcLeaseComplete", soapFault("no", types.SystemError{}))
		}},
		{name: "gone before complete", is: ErrLeaseLost, fails: true, change: func(h *host) { h.gone = true }},
		{name: "gone before abort", cause: errors.New("x"), change: func(h *host) { h.gone = true }},
		{name: "abort, answer lost", cause: errors.New("x"), aborts: []string{"x"}, change: func(h *host) { h.before = once("HttpNfcLeaseAbort", io.EOF) }},
		{name: "abort never answered", cause: errors.New("x"), fails: true, change: func(h *host) { h.before = answer("HttpNfcLeaseAbort", io.EOF) }},
		{name: "long cause", cause: errors.New(strings.Repeat("é", 1000)), aborts: []string{strings.Repeat("é", 256)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost()
				c, l := h.open(t)
				if tt.change != nil {
					h.set(func() { tt.change(h) })
				}
				ctx, cancel := context.WithCancel(t.Context())
				cancel() // closing works on a context of its own
				began := time.Now()
				var wg sync.WaitGroup
				for range 3 { // and may be called again
					wg.Go(func() {
						err := l.Close(ctx, tt.cause)
						if tt.fails != (err != nil) || tt.is != nil && !errors.Is(err, tt.is) {
							t.Errorf("got %v", err)
						}
					})
				}
				wg.Wait()
				if d := time.Since(began); d > closeTimeout {
					t.Errorf("took %v", d)
				}
				<-l.Done()
				if l.Err() != nil {
					t.Errorf("error %v", l.Err())
				}
				h.mu.Lock()
				defer h.mu.Unlock()
				if h.done != tt.done || !slices.Equal(h.aborts, tt.aborts) {
					t.Errorf("completed %d times, aborted %q", h.done, h.aborts)
				}
				n := len(h.calls)
				h.mu.Unlock()
				time.Sleep(time.Hour)
				h.mu.Lock()
				if len(h.calls) != n {
					t.Error("the keepalive goes on")
				}
				if len(c.leases) != 0 {
					t.Error("the client still holds it")
				}
			})
		})
	}
}

// once makes the first call of that name fail before the server hears of it.
func once(name string, err error) func(string) error {
	var o sync.Once
	return func(n string) (result error) {
		if n == name {
			o.Do(func() { result = err })
		}
		return result
	}
}

// heard lets the first HttpNfcLeaseComplete through and loses its answer.
func heard(h *host) func(string) error {
	var o sync.Once
	return func(n string) (result error) {
		if n == "HttpNfcLeaseComplete" {
			o.Do(func() {
				h.set(func() { h.gone, h.done = true, h.done+1 })
				result = io.EOF
			})
		}
		return result
	}
}

func TestNoRedirects(t *testing.T) {
	h := newHost()
	c := h.client(t)
	u, err := url.Parse("https://esx/x")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.fileClient(u, nil, map[string]*http.Transport{}).CheckRedirect(nil, nil); !errors.Is(err, http.ErrUseLastResponse) {
		t.Errorf("got %v", err)
	}
}
