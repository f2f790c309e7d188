package boottest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
	"github.com/hyper2kvm/hyper2kvm/internal/image/qcow2"
	"github.com/hyper2kvm/hyper2kvm/internal/image/qemutest"
	"github.com/hyper2kvm/hyper2kvm/internal/image/raw"
	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdktest"
	"github.com/hyper2kvm/hyper2kvm/internal/libvirt"
)

// converted is an image that came out of a VMDK stream.
type converted struct {
	name, format, path, text string
	sum                      [sha256.Size]byte
}

// formats are the ways a disk is converted.
var formats = []struct {
	name, format string
	writer       func(ctx context.Context, f *os.File, capacity int64) (image.Writer, error)
}{
	{"raw", "raw", func(ctx context.Context, f *os.File, capacity int64) (image.Writer, error) {
		return raw.NewWriter(ctx, f, capacity, raw.Options{})
	}},
	{"qcow2", "qcow2", func(ctx context.Context, f *os.File, capacity int64) (image.Writer, error) {
		return qcow2.NewWriter(ctx, f, capacity, qcow2.Options{})
	}},
	{"compressed qcow2", "qcow2", func(ctx context.Context, f *os.File, capacity int64) (image.Writer, error) {
		return qcow2.NewWriter(ctx, f, capacity, qcow2.Options{Compress: true})
	}},
}

// convert sends a disk that writes text when it boots through a VMDK stream
// into each format.
func convert(t *testing.T) []converted {
	t.Helper()
	dir := t.TempDir()
	var out []converted
	for i, format := range formats {
		c := converted{
			name: format.name, format: format.format,
			// A comma separates options of QEMU's, a space words.
			path: filepath.Join(dir, fmt.Sprintf("disk, no. %d.%s", i, format.format)),
			text: fmt.Sprintf("hyper2kvm boots: %s\r\n", format.name),
		}
		head := BootDisk(c.text)
		copy(head[64<<10:textOffset-64<<10], qemutest.Mixed(uint64(i), 3<<20))
		disk := &qemutest.Disk{Capacity: 24<<20 + 7*sectorSize, Pieces: []qemutest.Piece{
			{Off: 0, Data: head},
			{Off: 20<<20 - 1000, Data: qemutest.Random(uint64(i), 100000)},
		}}
		var stream bytes.Buffer
		if err := vmdk.Encode(&stream, vmdktest.Content(disk), vmdk.EncodeOptions{}); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(c.path)
		if err != nil {
			t.Fatal(err)
		}
		w, err := format.writer(t.Context(), f, disk.Capacity)
		if err != nil {
			t.Fatal(err)
		}
		if err := transfer(t.Context(), &stream, w); err != nil {
			t.Fatal(errors.Join(err, w.Abort()))
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		c.sum = sum(t, c.path)
		out = append(out, c)
	}
	return out
}

// transfer sends the grains of a VMDK stream to w.
func transfer(ctx context.Context, r io.Reader, w image.Writer) error {
	if err := image.Copy(ctx, w, vmdk.NewDecoder(r), nil); err != nil {
		return err
	}
	return w.Finish(ctx)
}

func sum(t *testing.T, path string) [sha256.Size]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

// twoBoots bounds how many machines run at once.
var twoBoots = make(chan struct{}, 2)

// boot starts the domain of a VM, wants it to have a device, and waits for the
// guest to write a text. It gives what the guest wrote.
func boot(t *testing.T, spec libvirt.Domain, opts libvirt.Options, device, want string) string {
	t.Helper()
	doc, _, err := libvirt.Build(spec, opts)
	if err != nil {
		t.Fatal(err)
	}
	args, err := Args(doc)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, device+",") }) {
		t.Errorf("the machine has no %s: %q", device, args)
	}
	twoBoots <- struct{}{}
	defer func() { <-twoBoots }()
	serial, err := Boot(t.Context(), doc, want)
	if err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
	return serial
}

// vm is a VM for these tests, without its disks.
func vm(guest string, cpus int, nic string) libvirt.Domain {
	return libvirt.Domain{
		Name: "boot, test", BIOSUUID: "420c3a1e-5b7d-4f21-9a8e-0d1c2b3a4f5e", GuestID: guest, CPUs: cpus, MemoryMiB: 64,
		NICs: []libvirt.NIC{{Model: nic, MAC: "00:50:56:8c:12:34", Network: "VM Network", Connected: true}},
	}
}

const (
	linux   = "debian11_64Guest"
	windows = "windows9_64Guest"
	legacy  = "winNetEnterpriseGuest"
)

// TestConvertedDisksBoot: a disk that went through every step of a conversion
// starts in the machine that the domain XML beside it describes, with each
// controller that a VM can have. Nothing it does changes the image.
func TestConvertedDisksBoot(t *testing.T) {
	images := convert(t)
	virtio := libvirt.Options{Hardware: libvirt.Virtio}
	for _, m := range []struct {
		controller, guest string
		opts              libvirt.Options
		cpus              int
		nic               string
		device            string // what the machine must have for it
	}{
		{"pvscsi", linux, libvirt.Options{}, 1, "vmxnet3", "pvscsi"},
		{"lsilogic", linux, libvirt.Options{}, 2, "e1000", "mptsas1068"},
		{"lsilogic", legacy, libvirt.Options{}, 1, "pcnet", "ide-hd"},
		{"lsisas1068", windows, libvirt.Options{}, 4, "e1000e", "mptsas1068"},
		{"buslogic", legacy, libvirt.Options{}, 1, "vmxnet2", "ide-hd"},
		{"sata", linux, libvirt.Options{CPU: libvirt.HostPassthrough}, 1, "vmxnet3", "ich9-ahci"},
		{"ide", linux, libvirt.Options{}, 1, "vmxnet3", "ide-hd"},
		{"nvme", linux, libvirt.Options{}, 1, "vmxnet3", "ich9-ahci"},
		{"nvme", linux, libvirt.Options{NVMe: true}, 1, "vmxnet3", "nvme-ns"},
		{"pvscsi", linux, virtio, 2, "vmxnet3", "virtio-scsi-pci"},
		{"sata", windows, virtio, 2, "e1000e", "virtio-scsi-pci"},
	} {
		for _, img := range images {
			hardware := cmp.Or(string(m.opts.Hardware), "same")
			t.Run(fmt.Sprintf("%s on %s, %s hardware, %s", m.guest, m.controller, hardware, img.name), func(t *testing.T) {
				t.Parallel()
				spec := vm(m.guest, m.cpus, m.nic)
				spec.Disks = []libvirt.Disk{{Path: img.path, Format: img.format, Controller: m.controller}}
				if serial := boot(t, spec, m.opts, m.device, img.text); serial != img.text {
					t.Errorf("the guest wrote %q, want %q", serial, img.text)
				}
			})
		}
	}
	// After the parallel ones.
	t.Cleanup(func() {
		for _, img := range images {
			if sum(t, img.path) != img.sum {
				t.Errorf("the %s image was changed", img.name)
			}
		}
	})
}

// TestBootOrder: of several disks the first in the VM's boot order starts, not
// the one at the first place; and disks keep apart on one controller and on
// several.
func TestBootOrder(t *testing.T) {
	images := convert(t)
	places := map[string][][2]int{ // bus and unit of three disks, in boot order
		"pvscsi":     {{1, 9}, {0, 0}, {1, 0}},
		"lsisas1068": {{0, 6}, {0, 0}, {1, 3}},
		"sata":       {{0, 5}, {0, 0}, {1, 2}},
		"ide":        {{1, 1}, {0, 0}, {0, 1}},
	}
	for controller, at := range places {
		t.Run(controller, func(t *testing.T) {
			t.Parallel()
			spec := vm(linux, 1, "vmxnet3")
			for i, img := range images {
				spec.Disks = append(spec.Disks, libvirt.Disk{Path: img.path, Format: img.format, Controller: controller, Bus: at[i][0], Unit: at[i][1]})
			}
			device := map[string]string{"pvscsi": "pvscsi", "lsisas1068": "mptsas1068", "sata": "ich9-ahci", "ide": "ide-hd"}[controller]
			if serial := boot(t, spec, libvirt.Options{}, device, images[0].text); serial != images[0].text {
				t.Errorf("the guest wrote %q, want %q", serial, images[0].text)
			}
		})
	}
}

// TestBootFails: every way in which there is no text is an error that says
// what was there instead.
func TestBootFails(t *testing.T) {
	img := convert(t)[0]
	domain := func(path, format string) []byte {
		spec := vm(linux, 1, "vmxnet3")
		spec.Disks = []libvirt.Disk{{Path: path, Format: format, Controller: "pvscsi"}}
		doc, _, err := libvirt.Build(spec, libvirt.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return doc
	}
	wants := func(what string, err error, parts ...string) {
		t.Helper()
		for _, part := range parts {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%s: error %v, want one with %q", what, err, part)
			}
		}
	}

	_, err := Boot(t.Context(), []byte("<domain/>"), img.text)
	wants("no domain", err, "translate domain XML")

	_, err = Boot(t.Context(), domain(img.path+".gone", "raw"), img.text)
	wants("no image", err, "exit status 1", "says: ", "No such file or directory")

	_, err = Boot(t.Context(), domain(img.path, "qcow2"), img.text)
	wants("another format", err, "exit status 1", "Image is not in qcow2 format")

	// The image's end, with the text in it, is missing.
	cut := filepath.Join(t.TempDir(), "cut.raw")
	if err := os.WriteFile(cut, BootDisk(img.text)[:textOffset], 0o600); err != nil {
		t.Fatal(err)
	}
	serial, err := Boot(t.Context(), domain(cut, "raw"), img.text)
	wants("an image cut off", err, errUnreadable.Error(), failedText[:10])
	if serial != failedText {
		t.Errorf("the guest wrote %q, want %q", serial, failedText)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = Boot(ctx, domain(img.path, "raw"), "another text")
	wants("another text", err, "deadline exceeded", `waited for "another text", the guest wrote `)

	t.Setenv("PATH", "")
	_, err = Boot(t.Context(), domain(img.path, "raw"), img.text)
	wants("no emulator", err, "qemu-system-x86_64", "Debian: qemu-system-x86")
}

// TestWatcher: output is bounded, and found also when it comes in pieces.
func TestWatcher(t *testing.T) {
	var why error
	stop := func(err error) { why = cmp.Or(why, err) }
	w := watcher{want: "needle", stop: stop}
	for _, piece := range []string{"hay nee", "dl", "e hay"} {
		if why != nil {
			t.Fatalf("before %q: %v", piece, why)
		}
		_, _ = w.Write([]byte(piece))
	}
	if why != errFound {
		t.Errorf("it stops with %v, want %v", why, errFound)
	}
	why = nil
	w = watcher{want: "needle", stop: stop}
	for range 100 {
		if n, err := w.Write(make([]byte, 1000)); n != 1000 || err != nil {
			t.Fatal(n, err)
		}
	}
	if why != errTooMuch || len(w.String()) != maxOutput {
		t.Errorf("it stops with %v and has %d bytes, want %v and %d", why, len(w.String()), errTooMuch, maxOutput)
	}
}
