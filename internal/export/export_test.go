package export

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/image/qemutest"
	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
	"github.com/hyper2kvm/hyper2kvm/internal/output"
	"github.com/hyper2kvm/hyper2kvm/internal/ovf"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/internal/stream"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

// host is an Origin in memory whose misbehaviour is written down per disk.
type host struct {
	disks [][]byte
	nvram []byte

	// faults says how the nth opening of a disk goes; openings beyond the
	// list go well.
	faults map[int][]fault
	ranged bool // honour offsets

	manifest  func(lease *hostLease, d Digest) (Digest, bool) // changes an entry or drops it
	late      bool                                            // the manifest is empty until every disk has been sent
	exclusive bool                                            // one lease at a time
	promises  bool                                            // a SHA-256 in the manifest
	grows     bool                                            // the descriptor is much longer than its draft
	leaseErr  error

	mu     sync.Mutex
	opened map[int]int // openings per disk
	leases []*hostLease
}

type fault struct {
	cut   int64 // break the connection at this offset
	end   int64 // end cleanly at this offset
	flip  int64 // change the byte at this offset
	empty bool
	lose  bool // lose the lease at the cut
	err   error
	wait  chan struct{} // closed when the stream has come to its cut; it then hangs
}

type hostLease struct {
	host   *host
	mu     sync.Mutex
	sent   map[int]bool
	lost   error
	closed bool
	cause  error
}

func (h *host) OpenLease(context.Context) (Lease, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leaseErr != nil {
		return nil, h.leaseErr
	}
	if h.exclusive {
		for _, l := range h.leases {
			if !l.closed {
				return nil, ErrBusy
			}
		}
	}
	l := &hostLease{host: h, sent: map[int]bool{}}
	h.leases = append(h.leases, l)
	return l, nil
}

func (h *host) Descriptor(_ context.Context, name string, files []DescriptorFile) ([]byte, []string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, `<?xml version="1.0"?><ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"><ovf:References>`)
	for i, f := range files {
		fmt.Fprintf(&b, `<ovf:File ovf:id="file%d" ovf:href="%s" ovf:size="%d"/>`, i, f.Name, f.Size)
	}
	if h.grows && files[0].Size > 0 {
		b.WriteString("<!--" + strings.Repeat("a longer descriptor ", 1000) + "-->")
	}
	b.WriteString(`</ovf:References><ovf:DiskSection><ovf:Info>disks</ovf:Info>`)
	for i, f := range files {
		if strings.HasSuffix(f.Name, ".vmdk") {
			fmt.Fprintf(&b, `<ovf:Disk ovf:diskId="d%d" ovf:fileRef="file%d" ovf:capacity="%d" ovf:capacityAllocationUnits="byte"/>`, i, i, f.Capacity)
		}
	}
	fmt.Fprintf(&b, `</ovf:DiskSection><ovf:VirtualSystem ovf:id="vm"><ovf:Info>vm</ovf:Info><ovf:Name>`)
	if err := xml.EscapeText(&b, []byte(name)); err != nil {
		return nil, nil, err
	}
	b.WriteString(`</ovf:Name></ovf:VirtualSystem></ovf:Envelope>`)
	return []byte(b.String()), nil, nil
}

func (h *host) Domain(disks []DomainDisk, nvram string) ([]byte, []string, error) {
	var b strings.Builder
	for _, d := range disks {
		fmt.Fprintf(&b, "<disk path=%q format=%q/>", d.Path, d.Format)
	}
	return []byte(b.String()), []string{"nvram " + nvram}, nil
}

func (l *hostLease) Items() []Item {
	var items []Item
	for i := range l.host.disks {
		items = append(items, Item{
			Key: fmt.Sprintf("/vm-1/disk:%d", i), Label: fmt.Sprintf("Hard disk %d", i+1), Role: output.RoleDisk,
			TargetID: "../../disk.vmdk", Host: "esx1", Source: &hostSource{lease: l, disk: i},
		})
	}
	if l.host.nvram != nil {
		items = append(items, Item{Key: "/vm-1/nvram", Role: output.RoleNVRAM, Size: int64(len(l.host.nvram)), Source: &hostSource{lease: l, disk: -1}})
	}
	return items
}

func (l *hostLease) Manifest(context.Context) ([]Digest, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost != nil {
		return nil, l.lost
	}
	if l.host.late && len(l.sent) < len(l.host.disks) {
		return nil, nil
	}
	var out []Digest
	for i := range l.sent {
		if i < 0 {
			continue
		}
		s1, s2 := sha1.Sum(l.host.disks[i]), sha256.Sum256(l.host.disks[i])
		d := Digest{Key: fmt.Sprintf("/vm-1/disk:%d", i), Size: int64(len(l.host.disks[i])),
			SHA1: hex.EncodeToString(s1[:]), SHA256: hex.EncodeToString(s2[:])}
		if l.host.manifest != nil {
			var ok bool
			if d, ok = l.host.manifest(l, d); !ok {
				continue
			}
		}
		out = append(out, d)
	}
	return out, nil
}

func (l *hostLease) SendsSHA256() bool { return l.host.promises }
func (l *hostLease) SetPercent(int)    {}
func (l *hostLease) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

func (l *hostLease) Close(_ context.Context, cause error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed, l.cause = true, cause
	}
	return nil
}

type hostSource struct {
	lease *hostLease
	disk  int
}

func (s *hostSource) Open(ctx context.Context, offset int64) (*stream.Body, error) {
	h := s.lease.host
	if err := s.lease.Err(); err != nil {
		return nil, &stream.StatusError{Status: 404}
	}
	h.mu.Lock()
	if h.opened == nil {
		h.opened = map[int]int{}
	}
	n := h.opened[s.disk]
	h.opened[s.disk]++
	data := h.nvram
	if s.disk >= 0 {
		data = h.disks[s.disk]
	}
	var f fault
	if list := h.faults[s.disk]; n < len(list) {
		f = list[n]
	}
	h.mu.Unlock()
	if f.err != nil {
		return nil, f.err
	}
	if !h.ranged {
		offset = 0
	}
	if f.flip > 0 {
		data = bytes.Clone(data)
		data[f.flip] ^= 1
	}
	return &stream.Body{ReadCloser: &hostBody{ctx: ctx, src: s, fault: f, data: data, at: offset}, Offset: offset, Size: -1}, nil
}

type hostBody struct {
	ctx   context.Context
	src   *hostSource
	fault fault
	data  []byte
	at    int64
}

func (b *hostBody) Read(p []byte) (int, error) {
	end, err := int64(len(b.data)), io.EOF
	switch {
	case b.fault.empty:
		return 0, io.EOF
	case b.fault.cut > 0:
		end, err = b.fault.cut, io.ErrUnexpectedEOF
	case b.fault.end > 0:
		end = b.fault.end
	}
	if b.at < end {
		n := copy(p, b.data[b.at:end])
		b.at += int64(n)
		return n, nil
	}
	l := b.src.lease
	if b.fault.wait != nil {
		close(b.fault.wait)
		<-b.ctx.Done()
		return 0, b.ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if b.fault.lose {
		l.lost = errors.New("the lease is lost")
	}
	if err == io.EOF {
		l.sent[b.src.disk] = true
	}
	return 0, err
}

func (b *hostBody) Close() error { return nil }

// grains is disk content: random bytes, so that no two grains are alike.
type grains struct {
	data []byte
}

func (g grains) Size() int64 { return int64(len(g.data)) }
func (g grains) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(g.data).ReadAt(p, off)
}
func (g grains) Extents() []vmdk.Range { return []vmdk.Range{{Off: 0, Len: g.Size()}} }

func disk(t testing.TB, size int, seed byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := vmdk.Encode(&b, grains{content(size, seed)}, vmdk.EncodeOptions{}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func content(size int, seed byte) []byte {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(data)
	return data
}

// changed is disk with another byte after its first MiB.
func changed(t testing.TB, size int, seed byte) []byte {
	t.Helper()
	data := content(size, seed)
	data[mib] ^= 1
	var b bytes.Buffer
	if err := vmdk.Encode(&b, grains{data}, vmdk.EncodeOptions{}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// formats are the ways to export.
var formats = map[string]Plan{
	"ovf":            {Format: OVF},
	"ova":            {Format: OVA},
	"raw":            {Format: Raw},
	"qcow2":          {Format: QCOW2},
	"qcow2 compress": {Format: QCOW2, Compress: true},
	"qcow2 verify":   {Format: QCOW2, Compress: true, VerifyGrains: true},
	"qcow2 keep":     {Format: QCOW2, Compress: true, KeepStream: true},
}

var testVM = output.VM{Name: "web", Path: "/DC0/vm/web", MoRef: "vm-1", Server: "vc"}

// export runs one export into dir, which may hold an earlier one.
func runExport(ctx context.Context, t *testing.T, h *host, dir, state string, how Plan) (Result, *progress.Tracker, error) {
	t.Helper()
	folder, err := output.Hold(dir, testVM.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	tracker := progress.NewTracker(nil)
	how.VM, how.State, how.Folder, how.Parallel, how.Version = testVM, state, folder, 4, "test"
	r, err := Run(ctx, h, how, tracker)
	for i, l := range h.leases {
		if !l.closed {
			t.Errorf("lease %d is left open", i)
		}
		if (l.cause == nil) != (err == nil) && l.lost == nil && len(h.leases) == 1 {
			t.Errorf("lease %d is closed with cause %v, the export's error is %v", i, l.cause, err)
		}
	}
	return r, tracker, err
}

// checkWhole compares every file with the host's and runs the product's own
// check. qemu-img reads what the guest would.
func checkWhole(t *testing.T, h *host, dir string, how Plan) {
	t.Helper()
	streams := dir
	if how.Format == OVA {
		streams = unpack(t, filepath.Join(dir, "web.ova"))
	}
	for i, want := range h.disks {
		stream := filepath.Join(streams, fmt.Sprintf("web-disk-%d.vmdk", i))
		image := filepath.Join(dir, fmt.Sprintf("web-disk-%d.%s", i, how.Format))
		if how.converts() {
			judge := filepath.Join(t.TempDir(), "judge.vmdk")
			if err := os.WriteFile(judge, want, 0o600); err != nil {
				t.Fatal(err)
			}
			if how.Format == QCOW2 {
				qemutest.Check(t, "qcow2", image)
			}
			qemutest.Compare(t, string(how.Format), image, "vmdk", judge)
		}
		if _, err := os.Stat(stream); (err == nil) != (!how.converts() || how.KeepStream) {
			t.Errorf("the stream of disk %d: %v", i, err)
		}
		if got, err := os.ReadFile(stream); err == nil && !bytes.Equal(got, want) {
			t.Errorf("disk %d differs", i)
		}
	}
	report, err := output.Verify(context.Background(), dir, nil)
	if err != nil || !report.OK {
		t.Errorf("verify: %+v, %v", report, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.partial*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// unpack wants an OVA to hold the descriptor, the manifest and what they name
// in that order and unharmed, and gives the folder it unpacked it to.
func unpack(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir := t.TempDir()
	var order []string
	sums := map[string]string{}
	data := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		order, data[h.Name], sums[h.Name] = append(order, h.Name), b, hex.EncodeToString(sum[:])
		if err := os.WriteFile(filepath.Join(dir, h.Name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if len(order) < 3 || filepath.Ext(order[0]) != ".ovf" || filepath.Ext(order[1]) != ".mf" {
		t.Fatalf("the archive holds %q", order)
	}
	entries, err := ovf.ParseManifest(bytes.NewReader(data[order[1]]))
	if err != nil || len(entries) != len(order)-1 {
		t.Fatalf("manifest: %v, %v", entries, err)
	}
	for _, e := range entries {
		if sums[e.Name] != e.Digest {
			t.Errorf("%s differs from the manifest", e.Name)
		}
	}
	d, err := ovf.ParseDescriptor(data[order[0]])
	if err != nil {
		t.Fatal(err)
	}
	for i, file := range d.Files {
		if order[i+2] != file.Name() || file.Size != int64(len(data[file.Name()])) {
			t.Errorf("reference %d is %+v, the archive holds %q", i, file, order)
		}
	}
	return dir
}

const mib = 1 << 20

func TestRun(t *testing.T) {
	d0, d1 := disk(t, 4*mib+512*7, 1), disk(t, 3*mib, 2)
	noEntry := func(*hostLease, Digest) (Digest, bool) { return Digest{}, false }
	noHash := func(_ *hostLease, d Digest) (Digest, bool) { d.SHA1, d.SHA256 = "", ""; return d, true }
	sha1Only := func(_ *hostLease, d Digest) (Digest, bool) { d.SHA256 = ""; return d, true }
	lies := func(_ *hostLease, d Digest) (Digest, bool) { d.SHA1 = strings.Repeat("0", 40); return d, true }
	for name, tc := range map[string]*struct {
		host     host
		err      string // part of the error; empty is success
		proof    output.Proof
		leases   int // how many are opened; 0 is one
		openings int // of disk 0; 0 is not looked at
	}{
		"well":                          {proof: output.ProofHost, openings: 1},
		"only SHA-1":                    {host: host{manifest: sha1Only}, proof: output.ProofHost},
		"late manifest":                 {host: host{late: true}, proof: output.ProofHost, openings: 1},
		"with nvram":                    {host: host{nvram: []byte("uefi variables")}, proof: output.ProofHost},
		"cut, ranges":                   {host: host{ranged: true, faults: map[int][]fault{0: {{cut: 3 * mib}}}}, proof: output.ProofHost, openings: 2},
		"cut, no ranges":                {host: host{faults: map[int][]fault{0: {{cut: 3 * mib}}}}, proof: output.ProofHost, openings: 2},
		"cut for ever":                  {host: host{faults: map[int][]fault{0: {{cut: mib}, {cut: mib}, {cut: mib}, {cut: mib}, {cut: mib}}}}, err: "Hard disk 1"},
		"short but clean":               {host: host{faults: map[int][]fault{0: {{end: 3 * mib}}}}, proof: output.ProofHost, openings: 2},
		"short at a structure's end":    {host: host{faults: map[int][]fault{0: {{end: int64(len(d0)) - 512}}}}, proof: output.ProofHost, openings: 2},
		"always short":                  {host: host{faults: map[int][]fault{0: {{end: mib}, {end: mib}, {end: mib}, {end: mib}, {end: mib}}}}, err: "ended"},
		"flipped byte":                  {host: host{faults: map[int][]fault{0: {{flip: 2 * mib}}}}, proof: output.ProofHost, openings: 2},
		"flipped byte in the header":    {host: host{faults: map[int][]fault{0: {{flip: 1}}}}, proof: output.ProofHost, openings: 2},
		"always flipped":                {host: host{faults: map[int][]fault{0: {{flip: 2 * mib}, {flip: 2 * mib}, {flip: 2 * mib}, {flip: 2 * mib}, {flip: 2 * mib}}}}, err: "Hard disk 1 (web-disk-0"},
		"lying manifest":                {host: host{manifest: lies}, err: "SHA-1"},
		"no manifest":                   {host: host{manifest: noEntry}, proof: output.ProofGrains, openings: 1},
		"promised SHA-256":              {host: host{promises: true}, proof: output.ProofHost, openings: 1},
		"promised, SHA-1 only":          {host: host{promises: true, manifest: sha1Only}, proof: output.ProofHost},
		"promised, no hash":             {host: host{promises: true, manifest: noHash}, proof: output.ProofGrains, leases: -1},
		"promised, flipped byte":        {host: host{promises: true, faults: map[int][]fault{0: {{flip: 2 * mib}}}}, proof: output.ProofHost, openings: 2},
		"longer descriptor":             {host: host{grows: true, nvram: []byte("x")}, proof: output.ProofHost, openings: 1},
		"no hash":                       {host: host{manifest: noHash}, proof: output.ProofGrains, openings: 1},
		"no manifest and a flipped bit": {host: host{manifest: noEntry, faults: map[int][]fault{0: {{flip: 2 * mib}}}}, proof: output.ProofGrains, openings: 2, leases: -1},
		"late manifest, flipped byte":   {host: host{late: true, faults: map[int][]fault{0: {{flip: 2 * mib}}}}, leases: -1, openings: 2},
		"lease lost":                    {host: host{faults: map[int][]fault{0: {{cut: 2 * mib, lose: true}}}}, openings: 2, leases: 2},
		"lease lost, one at a time":     {host: host{exclusive: true, faults: map[int][]fault{0: {{cut: 2 * mib, lose: true}}}}, openings: 2, leases: 2},
		"empty second disk":             {host: host{faults: map[int][]fault{1: {{empty: true}}}}, proof: output.ProofHost, leases: 2},
		"empty, one lease at a time":    {host: host{exclusive: true, faults: map[int][]fault{1: {{empty: true}}}}, proof: output.ProofHost, leases: 2},
		"404":                           {host: host{faults: map[int][]fault{0: {{err: &stream.StatusError{Status: 404}}}}}, err: "404", openings: 1},
		"503 twice":                     {host: host{faults: map[int][]fault{0: {{err: &stream.StatusError{Status: 503}}, {err: &stream.StatusError{Status: 503}}}}}, proof: output.ProofHost},
		"no lease":                      {host: host{leaseErr: problem.New(problem.Unauthorized, "export", errors.New("no permission"), "")}, err: "no permission"},
	} {
		for format, how := range formats {
			t.Run(name+"/"+format, func(t *testing.T) {
				t.Parallel()
				dir := filepath.Join(t.TempDir(), "out")
				h := tc.host.again()
				h.disks = [][]byte{d0, d1}
				synctest.Test(t, func(t *testing.T) {
					result, tracker, err := runExport(t.Context(), t, h, dir, "s", how)
					if tc.err != "" {
						if err == nil || !strings.Contains(err.Error(), tc.err) {
							t.Fatalf("error %v", err)
						}
						if _, err := os.Stat(filepath.Join(dir, output.ReceiptName)); err == nil {
							t.Error("there is a receipt")
						}
						if tc.host.leaseErr != nil {
							if _, err := os.Stat(dir); err == nil {
								t.Error("the folder is left behind")
							}
						}
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					if s := tracker.Snapshot(); s.Percent != 100 || s.Received != s.Total {
						t.Errorf("progress at the end: %+v", s)
					}
					if n := len(h.leases); tc.leases >= 0 && n != max(1, tc.leases) {
						t.Errorf("%d leases were opened", n)
					}
					if n := h.opened[0]; tc.openings > 0 && n != tc.openings {
						t.Errorf("disk 0 was opened %d times", n)
					}
					for _, f := range append(result.Receipt.Files, result.Receipt.Contents...) {
						if f.LeaseKey == "/vm-1/disk:0" && tc.proof != "" && f.Proof != tc.proof {
							t.Errorf("proof of %s is %s", f.Name, f.Proof)
						}
					}
					if result.Receipt.Verified != (tc.proof != output.ProofGrains) && tc.proof != "" {
						t.Errorf("verified is %v", result.Receipt.Verified)
					}
					if (len(result.Receipt.Notes) > 0) != how.converts() {
						t.Errorf("notes: %q", result.Receipt.Notes)
					}
				})
				if tc.err == "" && !t.Failed() {
					checkWhole(t, h, dir, how)
				}
			})
		}
	}
}

// again is a host of the same faults that nothing has happened to.
func (h *host) again() *host {
	return &host{nvram: h.nvram, faults: h.faults, ranged: h.ranged, manifest: h.manifest, late: h.late,
		exclusive: h.exclusive, promises: h.promises, grows: h.grows, leaseErr: h.leaseErr}
}

// TestRunContinues interrupts an export and runs it again.
func TestRunContinues(t *testing.T) {
	d0, d1 := disk(t, 4*mib, 1), disk(t, 3*mib, 2)
	for name, tc := range map[string]struct {
		ranged   bool
		state    string // of the second run
		change   bool   // disk 0 has other content by then
		openings [2]int // in the second run
		inOrder  [2]int // the same for an archive, whose second disk was not begun
	}{
		"with ranges":                 {ranged: true, state: "s", openings: [2]int{1, 0}, inOrder: [2]int{1, 1}},
		"without ranges":              {state: "s", openings: [2]int{1, 0}, inOrder: [2]int{1, 1}},
		"the disks have changed":      {ranged: true, state: "s2", change: true, openings: [2]int{1, 1}, inOrder: [2]int{1, 1}},
		"changed without being said":  {ranged: true, state: "s", change: true, openings: [2]int{2, 0}, inOrder: [2]int{2, 1}},
		"the state was never certain": {ranged: true, state: "", openings: [2]int{1, 1}, inOrder: [2]int{1, 1}},
	} {
		for format, how := range formats {
			t.Run(name+"/"+format, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				again := &host{disks: [][]byte{d0, d1}, ranged: tc.ranged}
				if tc.change {
					// The same at the place where the old one stopped, so that
					// the overlap looks right.
					again.disks[0] = changed(t, 4*mib, 1)
				}
				synctest.Test(t, func(t *testing.T) {
					interrupt(t, &host{disks: [][]byte{d0, d1}, ranged: tc.ranged}, dir, how)
					if _, _, err := runExport(t.Context(), t, again, dir, tc.state, how); err != nil {
						t.Fatal(err)
					}
				})
				checkWhole(t, again, dir, how)
				want := tc.openings
				switch {
				case how.Format == OVA:
					want = tc.inOrder
				case how.converts() && !how.KeepStream:
					// A begun image is made anew, so there is nothing to be
					// found different.
					want[0] = 1
				}
				if got := [2]int{again.opened[0], again.opened[1]}; got != want {
					t.Errorf("openings in the second run: %v, want %v", got, want)
				}
			})
		}
	}
}

// interrupt ends an export when 3 MiB of disk 0 and, unless they are taken in
// order, all of disk 1 have come.
func interrupt(t *testing.T, h *host, dir string, how Plan) {
	t.Helper()
	stuck := make(chan struct{})
	h.faults = map[int][]fault{0: {{cut: 3 * mib, wait: stuck}}}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	go func() {
		<-stuck
		synctest.Wait() // the other disk is whole by now
		cancel(enough)
	}()
	start := time.Now()
	_, _, err := runExport(ctx, t, h, dir, "s", how)
	if !errors.Is(err, enough) || problem.KindOf(err) != problem.Cancelled {
		t.Fatalf("error %v", err)
	}
	if !strings.Contains(err.Error(), "kept in "+dir) {
		t.Errorf("it does not say what is left: %v", err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("it took %v to stop", took)
	}
	if h.leases[0].cause == nil {
		t.Error("the lease was not aborted")
	}
	size := func(name string) int64 {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return -1
		}
		return info.Size()
	}
	switch {
	case how.Format == OVA:
		if n := size("web.ova.partial"); n <= 3*mib || n > 4*mib {
			t.Errorf("the partial archive has %d bytes", n)
		}
		return
	case how.converts() && size("web-disk-0."+string(how.Format)+".partial") >= 0:
		t.Error("half an image is left")
	}
	if (!how.converts() || how.KeepStream) && size("web-disk-0.vmdk.partial") != 3*mib {
		t.Errorf("the partial disk has %d bytes", size("web-disk-0.vmdk.partial"))
	}
	if size("web-disk-1."+map[bool]string{true: string(how.Format), false: "vmdk"}[how.converts()]) < 0 {
		t.Error("the finished disk is lost")
	}
}

// TestInterruptedWithNothing: half an image is of no use to a second run, so
// it is not promised one.
func TestInterruptedWithNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		h := &host{disks: [][]byte{disk(t, 2*mib, 1)}, faults: map[int][]fault{0: {{cut: mib, wait: stuck}}}}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-stuck
			cancel()
		}()
		_, _, err := runExport(ctx, t, h, dir, "s", Plan{Format: QCOW2})
		if problem.KindOf(err) != problem.Cancelled || !strings.Contains(err.Error(), "nothing is left in "+dir) {
			t.Errorf("error %v", err)
		}
	})
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is something: %v", err)
	}
}

// TestRunTakesUpArchive: an archive that had its name, but no receipt yet, when
// the power failed is whole but for that.
func TestRunTakesUpArchive(t *testing.T) {
	dir := t.TempDir()
	disks := [][]byte{disk(t, 2*mib, 1), disk(t, mib, 2)}
	how := Plan{Format: OVA}
	synctest.Test(t, func(t *testing.T) {
		if _, _, err := runExport(t.Context(), t, &host{disks: disks}, dir, "s", how); err != nil {
			t.Fatal(err)
		}
		var receipt output.Receipt
		data, err := os.ReadFile(filepath.Join(dir, output.ReceiptName))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &receipt); err != nil {
			t.Fatal(err)
		}
		// The journal as it was a moment before.
		journal := map[string]any{
			"state": "s ova", "partials": []string{"web.ova"}, "files": receipt.Contents[2:], "vm": receipt.VM, "started_at": receipt.Started,
		}
		if data, err = json.Marshal(journal); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, output.ReceiptName)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, output.ReceiptName+output.PartialSuffix), data, 0o600); err != nil {
			t.Fatal(err)
		}
		again := &host{disks: disks}
		if _, _, err := runExport(t.Context(), t, again, dir, "s", how); err != nil {
			t.Fatal(err)
		}
		if len(again.opened) != 0 {
			t.Errorf("disks were fetched again: %v", again.opened)
		}
	})
	checkWhole(t, &host{disks: disks}, dir, how)
}

// TestRunStaysInItsFolder: whatever a VM is called.
func TestRunStaysInItsFolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		top := t.TempDir()
		dir := filepath.Join(top, "out")
		h := &host{disks: [][]byte{disk(t, mib, 1)}}
		folder, err := output.Hold(dir, "x")
		if err != nil {
			t.Fatal(err)
		}
		vm := testVM
		vm.Name = "../../etc/pass\x00wd"
		if _, err := Run(t.Context(), h, Plan{VM: vm, Folder: folder}, progress.NewTracker(nil)); err != nil {
			t.Fatal(err)
		}
		folder.Close()
		entries, err := os.ReadDir(top)
		if err != nil || len(entries) != 1 {
			t.Fatalf("%v, %v", entries, err)
		}
	})
}

// TestRunSurvivesPanic: a panic is this export's failure and the lease is
// given back.
func TestRunSurvivesPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{disks: [][]byte{disk(t, mib, 1)}, manifest: func(*hostLease, Digest) (Digest, bool) { panic("boom") }}
		_, _, err := runExport(t.Context(), t, h, t.TempDir(), "s", Plan{})
		if err == nil || !strings.Contains(err.Error(), "boom") {
			t.Fatalf("error %v", err)
		}
	})
}
