package boottest

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/image/qemutest"
	"github.com/hyper2kvm/hyper2kvm/internal/libvirt"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// domains are the documents that package libvirt has for its own tests, by
// name.
func domains(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("../libvirt/testdata/*.xml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no domains: %v", err)
	}
	all := map[string][]byte{}
	for _, f := range files {
		doc, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(f), ".xml")] = doc
	}
	return all
}

// TestArgs compares with the files in testdata: an option a line, or the
// error.
func TestArgs(t *testing.T) {
	for name, doc := range domains(t) {
		args, err := Args(doc)
		var got strings.Builder
		for i, a := range args {
			if i > 0 && strings.HasPrefix(a, "-") {
				got.WriteByte('\n')
			} else if i > 0 {
				got.WriteByte(' ')
			}
			got.WriteString(a)
		}
		if err != nil {
			got.WriteString(err.Error())
		}
		got.WriteByte('\n')
		golden := filepath.Join("testdata", name+".args")
		if *update {
			if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got.String() != string(want) {
			t.Errorf("%s differs (go test ./internal/boottest -update rewrites it); got:\n%s", golden, got.String())
		}
	}
}

// needsKVM are the domains that only KVM can run.
var needsKVM = []string{"many-cpus"}

// TestQEMUTakesArgs: QEMU makes every one of the machines, with smaller memory
// and with images that exist.
func TestQEMUTakesArgs(t *testing.T) {
	images := map[string]string{"raw": qemutest.Create(t, "raw", 1<<20), "qcow2": qemutest.Create(t, "qcow2", 1<<20)}
	memory := regexp.MustCompile(`(emory unit="MiB">)[0-9]+`)
	source := regexp.MustCompile(`(<driver name="qemu" type="([a-z0-9]+)"[^>]*></driver>\s*<source) (?:file|dev)="[^"]*"`)
	for name, doc := range domains(t) {
		t.Run(name, func(t *testing.T) {
			text := memory.ReplaceAllString(string(doc), "${1}128")
			text = source.ReplaceAllStringFunc(text, func(s string) string {
				m := source.FindStringSubmatch(s)
				return m[1] + ` file="` + images[m[2]] + `"`
			})
			text = strings.ReplaceAll(text, `<disk type="block"`, `<disk type="file"`)
			args, err := Args([]byte(text))
			if slices.Contains(needsKVM, name) {
				if err == nil || !strings.Contains(err.Error(), "only KVM has") {
					t.Errorf("error %v, want one about KVM", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, emulator, append(args, "-S", "-chardev", "null,id="+SerialChardev, "-monitor", "stdio")...)
			cmd.Stdin = strings.NewReader("quit\n")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s\n%q", err, out, args)
			}
		})
	}
}

// document is a small domain.
func document(t testing.TB) string {
	t.Helper()
	doc, _, err := libvirt.Build(libvirt.Domain{
		Name: "small", BIOSUUID: "420c3a1e-5b7d-4f21-9a8e-0d1c2b3a4f5e", GuestID: "debian11_64Guest", CPUs: 2, MemoryMiB: 64,
		Disks: []libvirt.Disk{{Path: "/a/disk.qcow2", Format: "qcow2", Controller: "pvscsi"}},
		NICs:  []libvirt.NIC{{Model: "e1000", MAC: "00:50:56:00:00:01", Network: "n", Connected: true}},
	}, libvirt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

// TestArgsChanged: what package libvirt does not write today and is understood.
func TestArgsChanged(t *testing.T) {
	for _, tt := range []struct{ from, to, want string }{
		{`file="/a/disk.qcow2"`, `file="/a, b/c=d.qcow2"`, "if=none,id=disk0,format=qcow2,file.driver=file,file.filename=/a,, b/c=d.qcow2,discard=unmap,snapshot=on"},
		{`model="vmpvscsi"`, `model="lsilogic"`, "lsi53c895a,id=scsi0"},
		{`model="vmpvscsi"`, `model="virtio-scsi"`, "virtio-scsi-pci,id=scsi0"},
		{`bus="scsi"></target>`, `bus="virtio"></target>`, "virtio-blk-pci,drive=disk0,bootindex=1"},
		{`<boot order="1"></boot>`, ``, "scsi-hd,bus=scsi0.0,channel=0,scsi-id=0,lun=0,drive=disk0"},
		{`<uuid>420c3a1e-5b7d-4f21-9a8e-0d1c2b3a4f5e</uuid>`, ``, "guest=small"},
		{`<name>small</name>`, `<name>sm,all</name>`, "guest=sm,,all"},
		{`<acpi></acpi>`, ``, "pc,usb=off,acpi=off,vmport=off,hpet=off"},
		{`target="0" unit="0"`, `target="63" unit="0"`, "scsi-hd,bus=scsi0.0,channel=0,scsi-id=63,lun=0,drive=disk0,bootindex=1"},
	} {
		doc := strings.Replace(document(t), tt.from, tt.to, 1)
		if doc == document(t) {
			t.Fatalf("%s is not there", tt.from)
		}
		if tt.to == `bus="virtio"></target>` {
			doc = regexp.MustCompile(`<address type="drive"[^>]*></address>`).ReplaceAllString(doc, "")
		}
		args, err := Args([]byte(doc))
		if err != nil {
			t.Errorf("%s: %v", tt.to, err)
		} else if !slices.Contains(args, tt.want) {
			t.Errorf("%s: %q lack %q", tt.to, args, tt.want)
		}
	}
}

// TestArgsRefuses: whatever would make another machine than the one described
// is an error that names its place.
func TestArgsRefuses(t *testing.T) {
	for _, tt := range []struct{ from, to, want string }{
		{`type="kvm"`, `type="xen"`, `/domain: attribute type is "xen", want one of ["kvm"]`},
		{`<domain `, `<domain id="3" `, `/domain: attribute id is not understood, its value is "3"`},
		{`<vcpu`, `<iothreads>1</iothreads><vcpu`, `/domain: element iothreads is not understood`},
		{`<features>`, `<features>stray`, `/domain/features: text "stray" is not understood`},
		{`<vcpu`, `<q:commandline xmlns:q="http://libvirt.org/schemas/domain/qemu/1.0"/><vcpu`, `element http://libvirt.org/schemas/domain/qemu/1.0:commandline is not understood`},
		{`<name>small</name>`, `<name> </name>`, `/domain/name: text is ""`},
		{`<uuid>4`, `<uuid>-`, `/domain/uuid: text is "-20c3a1e-5b7d`},
		{`<name>small</name>`, ``, `/domain: there is no element name`},
		{`<name>small</name>`, `<name>a</name><name>b</name>`, `/domain: there are 2 elements name, want one`},
		{`machine="pc"`, `machine="isapc"`, `/domain/os/type: attribute machine is "isapc"`},
		{`>hvm<`, `>xen<`, `/domain/os/type: text is "xen", want "hvm"`},
		{`<os>`, `<os firmware="bios">`, `/domain/os: attribute firmware is "bios"`},
		{`<apic></apic>`, ``, `/domain/features: there is no element apic`},
		{`vmport state="off"`, `vmport state="maybe"`, `/domain/features/vmport: attribute state is "maybe"`},
		{`>64</memory>`, `>64k</memory>`, `/domain/memory: text is "64k", want a number from 1 to 134217728`},
		{`>64</currentMemory>`, `>32</currentMemory>`, `/domain/currentMemory: it is 32 MiB of 64`},
		{`<memory unit="MiB">`, `<memory unit="KiB">`, `/domain/memory: attribute unit is "KiB"`},
		{`sockets="2"`, `sockets="3"`, `/domain/cpu/topology: 3 sockets of 1 cores of 1 threads are not the 2 CPUs`},
		{`mode="host-model"`, `mode="custom"`, `/domain/cpu: attribute mode is "custom"`},
		{`offset="utc"`, `offset="variable"`, `/domain/clock: attribute offset is "variable"`},
		{`name="hpet" present="no"`, `name="tsc" present="no"`, `/domain/clock/timer[3]: attribute name is "tsc"`},
		{`model="vmpvscsi"`, `model="buslogic"`, `/domain/devices/controller[1]: the machine has no controller of type "scsi", model "buslogic", index 0`},
		{`model="vmpvscsi"`, `model="vmpvscsi"><address type="pci"/></controller><controller type="scsi" index="0" model="vmpvscsi"`, `there are two controllers of type "scsi" with index 0`},
		{`index="0" model="vmpvscsi"`, `index="300" model="vmpvscsi"`, `attribute index is "300", want a number from 0 to 255`},
		{`index="0" model="vmpvscsi"`, `index="1" model="vmpvscsi"`, `/domain/devices/disk/address: there is no controller of type "scsi" with index "0"`},
		{`target="0" unit="0"`, `target="64" unit="0"`, `/domain/devices/disk/address: attribute target is "64", want a number from 0 to 63`},
		{`target="0" unit="0"`, `target="0" unit="1"`, `/domain/devices/disk/address: attribute unit is "1", want a number from 0 to 0`},
		{`device="disk"`, `device="cdrom"`, `/domain/devices/disk: attribute device is "cdrom"`},
		{`type="qcow2"`, `type="vmdk"`, `/domain/devices/disk/driver: attribute type is "vmdk"`},
		{`<driver name="qemu"`, `<driver name="qemu" iothread="1"`, `/domain/devices/disk/driver: attribute iothread is not understood`},
		{`file="/a/disk.qcow2"`, `file="disk.qcow2"`, `/domain/devices/disk/source: attribute file is "disk.qcow2", want an absolute path`},
		{`<boot order="1">`, `<boot order="0">`, `/domain/devices/disk/boot: attribute order is "0"`},
		{`<model type="e1000">`, `<model type="rtl8139">`, `/domain/devices/interface/model: attribute type is "rtl8139", which is no network adapter here`},
		{`<target type="isa-serial" port="0">`, `<target type="isa-serial" port="1">`, `/domain/devices/serial/target: attribute port is "1"`},
		{`<input type="tablet"`, `<input type="mouse"`, `/domain/devices/input: attribute type is "mouse"`},
		{`memballoon model="none"`, `memballoon model="xen"`, `/domain/devices/memballoon: attribute model is "xen"`},
		{`type="vga"`, `type="qxl"`, `/domain/devices/video/model: attribute type is "qxl"`},
		{`</devices>`, `<tpm/></devices>`, `/domain/devices: element tpm is not understood`},
		{`<name>`, `<name a="1" a="2">`, `line 2: attribute a is there twice`},
		{`</domain>`, `</domain><domain/>`, `a second document begins`},
		{`</domain>`, ``, `unexpected EOF`},
		{`<name>small`, strings.Repeat(`<name>`, 40), `elements lie more than 32 deep`},
		{`<name>`, strings.Repeat(`<many/>`, 100) + `<name>`, `and 80 more`},
		{`<name>`, `<!--` + strings.Repeat(" ", maxDocument) + `--><name>`, `want at most 4194304`},
	} {
		doc := strings.Replace(document(t), tt.from, tt.to, 1)
		if doc == document(t) {
			t.Fatalf("%s is not there", tt.from)
		}
		args, err := Args([]byte(doc))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.200s: error %v, want one with %s", tt.to, err, tt.want)
		}
		if args != nil {
			t.Errorf("%.200s: there are arguments with the error", tt.to)
		}
	}
	for doc, want := range map[string]string{
		"":                 "document has no element",
		"<!-- nothing -->": "document has no element",
		"<network/>":       "the element is network, want domain",
		"<domain/>":        "/domain: there is no element devices",
		"plain":            "document has no element",
	} {
		if _, err := Args([]byte(doc)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %s", doc, err, want)
		}
	}
}

// FuzzArgs: no document makes Args panic or give arguments that QEMU would
// take for others than the options they are.
func FuzzArgs(f *testing.F) {
	for _, doc := range domains(f) {
		f.Add(doc)
	}
	f.Add([]byte(document(f)))
	f.Add([]byte("<domain/>"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		args, err := Args(doc)
		if (args == nil) != (err != nil) {
			t.Fatalf("%q with error %v", args, err)
		}
		again, err2 := Args(doc)
		if !slices.Equal(args, again) || (err == nil) != (err2 == nil) || err != nil && err.Error() != err2.Error() {
			t.Fatalf("a second time it is %q, %v instead of %q, %v", again, err2, args, err)
		}
		for _, a := range args {
			if strings.ContainsRune(a, 0) {
				t.Fatalf("argument %q holds a NUL", a)
			}
			// What a document says is in values only: an argument that begins
			// with a dash is one of ours.
			if strings.HasPrefix(a, "-") && strings.ContainsFunc(a[1:], func(r rune) bool { return r != '-' && (r < 'a' || r > 'z') }) {
				t.Fatalf("argument %q is taken for an option", a)
			}
		}
	})
}
