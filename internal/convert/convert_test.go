package convert

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/hyper2kvm/hyper2kvm/internal/image/qemutest"
	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdktest"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

func testDisk(seed uint64) *qemutest.Disk {
	return &qemutest.Disk{Capacity: 40*mib + 512*3, Pieces: []qemutest.Piece{
		{Off: 0, Data: qemutest.Mixed(seed, 3*mib)}, {Off: 30 * mib, Data: qemutest.Text(seed, 100_000)}, {Off: 40*mib + 512, Data: qemutest.Random(seed, 1024)},
	}}
}

func write(t *testing.T, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func run(t *testing.T, in, out string, opts Options) (Result, error) {
	t.Helper()
	return Run(t.Context(), in, out, opts, progress.NewTracker(nil))
}

func descriptor(disks ...string) []byte {
	var b strings.Builder
	b.WriteString(`<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"><References>`)
	for i, d := range disks {
		fmt.Fprintf(&b, `<File ovf:id="f%d" ovf:href="%s"/>`, i, d)
	}
	b.WriteString(`</References><DiskSection><Info/>`)
	for i := range disks {
		fmt.Fprintf(&b, `<Disk ovf:diskId="d%d" ovf:fileRef="f%d" ovf:capacity="1"/>`, i, i)
	}
	b.WriteString(`</DiskSection></Envelope>`)
	return []byte(b.String())
}

func manifest(files map[string][]byte) []byte {
	var b strings.Builder
	for name, data := range files {
		fmt.Fprintf(&b, "SHA256(%s)= %x\n", name, sha256.Sum256(data))
	}
	return []byte(b.String())
}

type file struct {
	name string
	data []byte
}

func ova(t *testing.T, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.data)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestSingle converts every form of a local VMDK, and qemu-img compares.
func TestSingle(t *testing.T) {
	d := testDisk(1)
	want := d.Raw(t)
	inputs := map[string]string{"ours": write(t, t.TempDir(), "disk.vmdk", vmdktest.Stream(t, d, 1))}
	for _, form := range []string{"streamOptimized", "monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"} {
		inputs[form] = qemutest.Convert(t, "raw", want, "vmdk", "-o", "subformat="+form)
	}
	for form, in := range inputs {
		for name, opts := range map[string]Options{
			"disk.qcow2": {Format: QCOW2}, "compressed.qcow2": {Format: QCOW2, Compress: true},
			"verified.qcow2": {Format: QCOW2, Compress: true, VerifyGrains: true}, "disk.raw": {Format: Raw},
		} {
			t.Run(form+" "+name, func(t *testing.T) {
				out := filepath.Join(t.TempDir(), name)
				r, err := run(t, in, out, opts)
				if err != nil {
					t.Fatal(err)
				}
				qemutest.Compare(t, string(opts.Format), out, "raw", want)
				if opts.Format == QCOW2 {
					qemutest.Check(t, "qcow2", out)
				}
				got := r.Disks[0]
				info, err := os.Stat(out)
				if err != nil || info.Size() != got.Size || got.Path != out || got.Verified || got.Capacity < d.Capacity {
					t.Errorf("%+v, %v", got, err)
				}
				stream := strings.HasSuffix(form, "Optimized") || form == "ours"
				if got.Checked != (stream && (!opts.Compress || opts.VerifyGrains)) {
					t.Errorf("checked: %+v", got)
				}
				if left, _ := filepath.Glob(out + ".*"); len(left) > 0 {
					t.Errorf("left: %q", left)
				}
			})
		}
	}
}

// TestPackages converts OVF folders and OVAs, good and bad.
func TestPackages(t *testing.T) {
	a, b := testDisk(1), testDisk(2)
	sa, sb := vmdktest.Stream(t, a, 1), vmdktest.Stream(t, b, 1)
	desc := descriptor("vm-disk-0.vmdk", "vm-disk-1.vmdk")
	good := map[string][]byte{"vm.ovf": desc, "vm-disk-0.vmdk": sa, "vm-disk-1.vmdk": sb}
	damaged := bytes.Clone(sb)
	damaged[len(damaged)/2] ^= 1
	for name, tc := range map[string]struct {
		files []file
		want  string // part of the error; empty is success
	}{
		"good":                   {files: []file{{"vm.ovf", desc}, {"vm.mf", manifest(good)}, {"vm-disk-0.vmdk", sa}, {"vm-disk-1.vmdk", sb}}},
		"manifest last":          {files: []file{{"vm.ovf", desc}, {"vm-disk-0.vmdk", sa}, {"vm-disk-1.vmdk", sb}, {"vm.mf", manifest(good)}}},
		"no manifest":            {files: []file{{"vm.ovf", desc}, {"vm-disk-0.vmdk", sa}, {"vm-disk-1.vmdk", sb}}},
		"damaged disk":           {files: []file{{"vm.ovf", desc}, {"vm.mf", manifest(good)}, {"vm-disk-0.vmdk", sa}, {"vm-disk-1.vmdk", damaged}}, want: "vm-disk-1.vmdk"},
		"another disk":           {files: []file{{"vm.ovf", desc}, {"vm.mf", manifest(good)}, {"vm-disk-0.vmdk", sa}, {"vm-disk-1.vmdk", sa}}, want: "the manifest says"},
		"another descriptor":     {files: []file{{"vm.ovf", append(bytes.Clone(desc), '\n')}, {"vm.mf", manifest(good)}, {"vm-disk-0.vmdk", sa}, {"vm-disk-1.vmdk", sb}}, want: "vm.ovf: its SHA256"},
		"missing disk":           {files: []file{{"vm.ovf", desc}, {"vm-disk-0.vmdk", sa}}, want: `"vm-disk-1.vmdk"`},
		"cut disk":               {files: []file{{"vm.ovf", desc}, {"vm-disk-0.vmdk", sa}, {"vm-disk-1.vmdk", sb[:len(sb)-512]}}, want: "vm-disk-1.vmdk: "},
		"no descriptor":          {files: []file{{"vm-disk-0.vmdk", sa}}, want: "no .ovf"},
		"leads out":              {files: []file{{"vm.ovf", descriptor("../vm-disk-0.vmdk")}, {"vm-disk-0.vmdk", sa}}, want: "no plain file"},
		"leads out, encoded":     {files: []file{{"vm.ovf", descriptor("..%2fvm-disk-0.vmdk")}, {"vm-disk-0.vmdk", sa}}, want: "no plain file"},
		"no disks":               {files: []file{{"vm.ovf", descriptor()}}, want: "no disks"},
		"one name for two disks": {files: []file{{"vm.ovf", descriptor("a.vmdk", "a.img")}, {"a.vmdk", sa}, {"a.img", sb}}, want: "would both become"},
		"not XML":                {files: []file{{"vm.ovf", []byte("hello")}}, want: "vm.ovf"},
	} {
		for _, packed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s packed %v", name, packed), func(t *testing.T) {
				dir := t.TempDir()
				in := dir
				if packed {
					in = write(t, dir, "vm.ova", ova(t, tc.files...))
				} else {
					for _, f := range tc.files {
						write(t, dir, f.name, f.data)
					}
				}
				out := filepath.Join(t.TempDir(), "images")
				r, err := run(t, in, out, Options{Format: QCOW2, Compress: true, Parallel: 2})
				if tc.want != "" {
					if err == nil || !strings.Contains(err.Error(), tc.want) {
						t.Fatalf("error %v", err)
					}
					if bad, _ := filepath.Glob(filepath.Join(out, "vm-disk-1*")); len(bad) > 0 {
						t.Errorf("left: %q", bad)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				for i, d := range []*qemutest.Disk{a, b} {
					qemutest.Compare(t, "qcow2", filepath.Join(out, fmt.Sprintf("vm-disk-%d.qcow2", i)), "raw", d.Raw(t))
					if r.Disks[i].Verified != (name != "no manifest") || (len(r.Warnings) == 0) != r.Disks[i].Verified {
						t.Errorf("%+v, %q", r.Disks[i], r.Warnings)
					}
				}
			})
		}
	}
}

// TestPercent: all disks count from the beginning, those that wait as well.
func TestPercent(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []file{
		{"vm.ovf", descriptor("a.vmdk", "b.vmdk")},
		{"a.vmdk", vmdktest.Stream(t, testDisk(1), 1)}, {"b.vmdk", vmdktest.Stream(t, testDisk(2), 1)},
	} {
		write(t, dir, f.name, f.data)
	}
	last := 0.0
	tracker := progress.NewTracker(progress.SinkFunc(func(e progress.Event) {
		s := e.Snapshot
		if s.Percent < last {
			t.Errorf("%.1f %% after %.1f %%", s.Percent, last)
		}
		last = s.Percent
		if s.Phase == progress.Converting && len(s.Files) == 2 && s.Files[1].State == progress.Waiting && s.Percent > 60 {
			t.Errorf("%.1f %% before the second disk began", s.Percent)
		}
	}))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tracker.Run(ctx, time.Millisecond)
	}()
	_, err := Run(ctx, dir, filepath.Join(t.TempDir(), "images"), Options{Format: Raw, Parallel: 1}, tracker)
	cancel()
	<-ended
	if err != nil {
		t.Fatal(err)
	}
	if s := tracker.Snapshot(); s.Percent != 100 {
		t.Errorf("%.1f %% at the end", s.Percent)
	}
}

// TestArchiveTables: an OVA whose table lies.
func TestArchiveTables(t *testing.T) {
	whole := ova(t, file{"vm.ovf", descriptor("a.vmdk")}, file{"a.vmdk", vmdktest.Stream(t, testDisk(1), 1)})
	for name, data := range map[string][]byte{
		"cut":       whole[:len(whole)/2],
		"twice":     ova(t, file{"vm.ovf", descriptor("a.vmdk")}, file{"a.vmdk", nil}, file{"a.vmdk", nil}),
		"path":      ova(t, file{"x/vm.ovf", descriptor("a.vmdk")}),
		"bad block": append(bytes.Clone(whole[:1024]), bytes.Repeat([]byte{0xff}, 2048)...),
	} {
		in := write(t, t.TempDir(), "vm.ova", data)
		if _, err := run(t, in, filepath.Join(t.TempDir(), "out"), Options{Format: Raw}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestOutputs: nothing is overwritten unasked, and a damaged grain is named.
func TestOutputs(t *testing.T) {
	dir := t.TempDir()
	s := vmdktest.Stream(t, testDisk(1), 1)
	in := write(t, dir, "disk.vmdk", s)
	there := write(t, dir, "there.raw", []byte("precious"))
	if _, err := run(t, in, there, Options{Format: Raw}); problem.KindOf(err) != problem.Conflict || !strings.Contains(err.Error(), "there already") {
		t.Errorf("it is there: %v", err)
	}
	if data, err := os.ReadFile(there); err != nil || string(data) != "precious" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := run(t, in, there, Options{Format: Raw, Overwrite: true}); err != nil {
		t.Errorf("overwrite: %v", err)
	}
	if r, err := run(t, in, dir, Options{Format: QCOW2}); err != nil || r.Disks[0].Path != filepath.Join(dir, "disk.qcow2") {
		t.Errorf("into a folder: %+v, %v", r, err)
	}

	// A bit in the body of a grain that no structure check sees.
	d := vmdk.NewDecoder(bytes.NewReader(s))
	e, err := d.Next()
	if err != nil {
		t.Fatal(err)
	}
	s[e.StreamOffset+12+int64(len(e.Data))-1] ^= 1 // of its Adler-32
	bad := write(t, dir, "bad.vmdk", s)
	for _, opts := range []Options{{Format: Raw}, {Format: QCOW2}, {Format: QCOW2, Compress: true, VerifyGrains: true}} {
		out := filepath.Join(dir, "bad.out")
		_, err := run(t, bad, out, opts)
		if err == nil || !strings.Contains(err.Error(), "bad.vmdk") || !strings.Contains(err.Error(), "sector 0 ") ||
			!strings.Contains(err.Error(), fmt.Sprintf("byte %d of the stream", e.StreamOffset)) ||
			!strings.Contains(err.Error(), "(the file is damaged or not whole: ") {
			t.Errorf("%+v: %v", opts, err)
		}
		if left, _ := filepath.Glob(out + "*"); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	_, err = Run(ctx, in, filepath.Join(dir, "never.raw"), Options{Format: Raw}, progress.NewTracker(nil))
	if problem.KindOf(err) != problem.Cancelled || !errors.Is(err, enough) {
		t.Errorf("cancelled: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "never*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestLockedOutput: two conversions never write to one file.
func TestLockedOutput(t *testing.T) {
	dir := t.TempDir()
	first, err := (target{path: filepath.Join(dir, "disk.raw")}).open()
	if err != nil {
		t.Fatal(err)
	}
	in := write(t, dir, "disk.vmdk", vmdktest.Stream(t, testDisk(1), 1))
	if _, err := run(t, in, filepath.Join(dir, "disk.raw"), Options{Format: Raw}); problem.KindOf(err) != problem.Conflict {
		t.Errorf("error %v", err)
	}
	if _, err := first.Seek(0, io.SeekEnd); err != nil {
		t.Errorf("the first one's file: %v", err)
	}
	if err := first.close(); err != nil {
		t.Error(err)
	}
}
