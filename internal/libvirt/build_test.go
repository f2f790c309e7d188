package libvirt

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const (
	biosUUID     = "420c3a1e-5b7d-4f21-9a8e-0d1c2b3a4f5e"
	instanceUUID = "500c7b2d-1e4f-6a9b-8c3d-2f1e0a9b8c7d"
)

// golden are domains with everything that decides about their XML.
var golden = []struct {
	name string
	spec Domain
	opts Options
}{
	{
		name: "bios-lsilogic",
		spec: Domain{
			Name: "web 01", BIOSUUID: biosUUID, InstanceUUID: instanceUUID, GuestID: "rhel7_64Guest",
			CPUs: 4, CoresPerSocket: 2, MemoryMiB: 8192, Firmware: BIOS,
			Disks: []Disk{
				{Path: "/exports/web 01/web 01-disk-0.qcow2", Format: "qcow2", Controller: "lsilogic"},
				{Path: "/dev/vg0/web01-data", Block: true, Format: "raw", Controller: "lsilogic", Unit: 1},
			},
			NICs: []NIC{{Model: "vmxnet3", MAC: "00:50:56:8C:12:34", Network: "VM Network", Connected: true}},
		},
	},
	{
		name: "uefi-pvscsi-nvram",
		spec: Domain{
			Name: "db", BIOSUUID: biosUUID, InstanceUUID: instanceUUID, GuestID: "sles15_64Guest",
			CPUs: 8, CoresPerSocket: 8, MemoryMiB: 65536, Firmware: UEFI, NVRAM: "db-file-1.nvram", VideoRAMKiB: 20000,
			Disks: []Disk{
				{Path: "/exports/db/db-disk-0.qcow2", Format: "qcow2", Controller: "pvscsi"},
				{Path: "/exports/db/db-disk-1.qcow2", Format: "qcow2", Controller: "pvscsi", Bus: 1, Unit: 8},
				{Path: "/exports/db/db-disk-2.qcow2", Format: "qcow2", Controller: "pvscsi", Bus: 3, Unit: 64},
			},
			NICs: []NIC{{Model: "VirtualVmxnet3", MAC: "00:50:56:8c:12:35", Network: "prod", Connected: true}},
		},
		opts: Options{CPU: HostPassthrough, NetworkMap: map[string]NetworkTarget{"prod": {Bridge: "br-prod"}}},
	},
	{
		name: "uefi-secure-boot",
		spec: Domain{
			Name: "win2022", BIOSUUID: biosUUID, GuestID: "windows2019srvNext_64Guest",
			CPUs: 2, MemoryMiB: 4096, Firmware: "uefi", SecureBoot: true, NVRAM: "win2022-file-1.nvram",
			Disks: []Disk{
				{Path: "/exports/win2022/win2022-disk-0.raw", Format: "raw", Controller: "lsisas1068"},
				{Path: "/exports/win2022/win2022-disk-1.raw", Format: "raw", Controller: "lsisas1068", Unit: 12},
				{Path: "/exports/win2022/win2022-disk-2.raw", Format: "raw", Controller: "ide"},
			},
			NICs:         []NIC{{Model: "e1000e", MAC: "00:50:56:8c:12:36", Network: "VM Network", Connected: false}},
			OtherDevices: []string{"virtual TPM"},
		},
	},
	{
		name: "ide-only",
		spec: Domain{
			Name: "alt & wichtig <1998>", BIOSUUID: biosUUID, GuestID: "winNetEnterpriseGuest",
			CPUs: 1, MemoryMiB: 512,
			Disks: []Disk{
				{Path: "/exports/alt/alt-disk-0.qcow2", Format: "qcow2", Controller: "ide"},
				{Path: "/exports/alt/alt-disk-1.qcow2", Format: "qcow2", Controller: "ide", Bus: 1, Unit: 1},
				{Path: "/exports/alt/alt-disk-2.qcow2", Format: "qcow2", Controller: "buslogic"},
			},
			NICs: []NIC{{Model: "pcnet", MAC: "00:0c:29:01:02:03", Network: "VM Network", Connected: true}},
		},
	},
	{
		name: "sata-nvme",
		spec: Domain{
			Name: "mixed", BIOSUUID: biosUUID, GuestID: "ubuntu64Guest", CPUs: 6, CoresPerSocket: 4, MemoryMiB: 2048, Firmware: UEFI,
			Disks: []Disk{
				{Path: "/exports/mixed/mixed-disk-0.qcow2", Format: "qcow2", Controller: "nvme"},
				{Path: "/exports/mixed/mixed-disk-1.qcow2", Format: "qcow2", Controller: "sata"},
				{Path: "/exports/mixed/mixed-disk-2.qcow2", Format: "qcow2", Controller: "ahci", Unit: 29},
				{Path: "/exports/mixed/mixed-disk-3.qcow2", Format: "qcow2", Controller: "sata", Bus: 2, Unit: 3},
			},
		},
	},
	{
		name: "many-nics",
		spec: Domain{
			Name: "router/東京", BIOSUUID: biosUUID, GuestID: "freebsd13_64Guest", CPUs: 2, MemoryMiB: 1024,
			Disks: []Disk{{Path: "/exports/router/router-disk-0.qcow2", Format: "qcow2", Controller: "pvscsi"}},
			NICs: []NIC{
				{Model: "vmxnet3", MAC: "00:50:56:00:00:01", Network: "wan", Connected: true},
				{Model: "vmxnet3", MAC: "00:50:56:00:00:02", Network: "lan", Connected: true},
				{Model: "e1000e", MAC: "00:50:56:00:00:03", Network: "dmz = \"outer\"", Connected: true},
				{Model: "e1000", MAC: "00:50:56:00:00:04", Network: "lan", Connected: false},
				{Model: "PCNet32", MAC: "00:50:56:00:00:05", Network: "old", Connected: true},
				{Model: "vmxnet2", MAC: "00:50:56:00:00:06", Network: "old", Connected: true},
				{Model: "sriov", MAC: "01:00:5e:00:00:07", Network: "wan", Connected: true},
				{Model: "vmxnet3", Network: "lan", Connected: true},
			},
		},
		opts: Options{NetworkMap: map[string]NetworkTarget{
			"wan": {Bridge: "br0"}, "lan": {Network: "office lan"}, "dmz = \"outer\"": {Bridge: "br-dmz.7"},
		}},
	},
	{
		name: "windows-virtio",
		spec: Domain{
			Name: "win10", BIOSUUID: biosUUID, GuestID: "windows9_64Guest", CPUs: 4, CoresPerSocket: 4, MemoryMiB: 8192, Firmware: UEFI,
			Disks: []Disk{
				{Path: "/exports/win10/win10-disk-0.qcow2", Format: "qcow2", Controller: "lsisas1068"},
				{Path: "/exports/win10/win10-disk-1.qcow2", Format: "qcow2", Controller: "nvme"},
			},
			NICs: []NIC{{Model: "e1000e", MAC: "00:50:56:8c:12:37", Network: "VM Network", Connected: true}},
		},
		opts: Options{Hardware: Virtio, NetworkMap: map[string]NetworkTarget{AnyNetwork: {Bridge: "br0"}}},
	},
	{
		name: "linux-virtio-bios",
		spec: Domain{
			Name: "deb", BIOSUUID: biosUUID, GuestID: "debian11_64Guest", CPUs: 2, MemoryMiB: 2048, Clock: LocalTime,
			Disks: []Disk{{Path: "/exports/deb/deb-disk-0.qcow2", Format: "qcow2", Controller: "ide"}},
			NICs:  []NIC{{Model: "vmxnet3", MAC: "00:50:56:8c:12:38", Network: "VM Network", Connected: true}},
		},
		opts: Options{Hardware: Virtio},
	},
	{
		name: "many-cpus",
		spec: Domain{
			Name: "hana", BIOSUUID: biosUUID, GuestID: "sles12_64Guest", CPUs: 384, CoresPerSocket: 96, MemoryMiB: 6 << 20,
			Disks: []Disk{{Path: "/exports/hana/hana-disk-0.raw", Format: "raw", Controller: "pvscsi"}},
		},
	},
}

// TestGolden compares with the files in testdata, the notes included (as the
// XML comment in front), and has libvirt's own validator read each.
func TestGolden(t *testing.T) {
	for _, tt := range golden {
		t.Run(tt.name, func(t *testing.T) {
			doc, notes, err := Build(tt.spec, tt.opts)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			got.WriteString("<!--\n")
			for _, n := range notes {
				fmt.Fprintln(&got, n)
			}
			got.WriteString("-->\n")
			got.Write(doc)
			path := filepath.Join("testdata", tt.name+".xml")
			if *update {
				if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("%s differs (go test -update rewrites it); got:\n%s", path, got.Bytes())
			}
			validate(t, doc)
			again, _, err := Build(tt.spec, tt.opts)
			if err != nil || !bytes.Equal(doc, again) {
				t.Errorf("a second Build differs: %v", err)
			}
		})
	}
}

// validate has virt-xml-validate read the document. A machine without the
// tool fails the test: a document nobody checked is no result.
func validate(t *testing.T, doc []byte) {
	t.Helper()
	tool, err := exec.LookPath("virt-xml-validate")
	if err != nil {
		t.Fatalf("virt-xml-validate is missing (Debian: libvirt-clients and libxml2-utils): %v", err)
	}
	file := filepath.Join(t.TempDir(), "domain.xml")
	if err := os.WriteFile(file, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), tool, file, "domain").CombinedOutput(); err != nil {
		t.Errorf("virt-xml-validate: %v\n%s\n%s", err, out, doc)
	}
}

// TestNVMe: the schema of older libvirt does not know the bus, so the
// validator is asked only where it does.
func TestNVMe(t *testing.T) {
	spec := Domain{
		Name: "n", BIOSUUID: biosUUID, CPUs: 1, MemoryMiB: 1, Firmware: UEFI,
		Disks: []Disk{
			{Path: "/a", Format: "raw", Controller: "nvme", Bus: 1},
			{Path: "/b", Format: "raw", Controller: "nvme", Bus: 3, Unit: 2},
		},
	}
	doc, _, err := Build(spec, Options{NVMe: true})
	if err != nil {
		t.Fatal(err)
	}
	dom := parse(t, doc)
	var got []string
	for _, d := range dom.Devices.Disks {
		got = append(got, d.Target.Bus+" "+d.Target.Dev)
	}
	if want := []string{"nvme nvme0n1", "nvme nvme1n3"}; !slices.Equal(got, want) {
		t.Errorf("disks are %q, want %q", got, want)
	}
	var serials []string
	for _, c := range dom.Devices.Controllers {
		if c.NVME != nil {
			serials = append(serials, c.NVME.Serial)
		}
	}
	if want := []string{"hyper2kvm-nvme0", "hyper2kvm-nvme1"}; !slices.Equal(serials, want) {
		t.Errorf("serials are %q, want %q", serials, want)
	}
	const schema = "/usr/share/libvirt/schemas/domaincommon.rng"
	rng, err := os.ReadFile(schema)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(rng, []byte(`<ref name="nvmeController"/>`)) {
		validate(t, doc)
	} else {
		t.Logf("%s knows no NVMe controller: not validated", schema)
	}
}

func parse(t testing.TB, doc []byte) *libvirtxml.Domain {
	t.Helper()
	var dom libvirtxml.Domain
	if err := dom.Unmarshal(string(doc)); err != nil {
		t.Fatalf("parse: %v\n%s", err, doc)
	}
	return &dom
}

// TestPlaces: where disks go, as "controller type, index, model, bus:target:unit".
func TestPlaces(t *testing.T) {
	at := func(controller string, bus, unit int) Disk {
		return Disk{Path: "/d", Format: "raw", Controller: controller, Bus: bus, Unit: unit}
	}
	tests := []struct {
		name  string
		guest string
		fw    Firmware
		disks []Disk
		want  []string
		notes int // that name a disk or controller
	}{
		{"pvscsi keeps its unit", "", BIOS, []Disk{at("pvscsi", 0, 0), at("pvscsi", 0, 15)}, []string{"scsi0 vmpvscsi 0:0:0 sda", "scsi0 vmpvscsi 0:15:0 sdb"}, 0},
		{"buses close up", "", BIOS, []Disk{at("pvscsi", 3, 1), at("lsisas1068", 1, 2)}, []string{"scsi1 vmpvscsi 0:1:0 sda", "scsi0 lsisas1068 0:2:0 sdb"}, 0},
		{"wide SAS overflows", "", BIOS, []Disk{at("lsisas1068", 0, 0), at("lsisas1068", 0, 8), at("lsisas1068", 1, 1)}, []string{"scsi0 lsisas1068 0:0:0 sda", "scsi0 lsisas1068 0:1:0 sdb", "scsi1 lsisas1068 0:1:0 sdc"}, 1},
		{"both IDE channels", "", BIOS, []Disk{at("ide", 0, 0), at("ide", 0, 1), at("ide", 1, 0), at("ide", 1, 1)}, []string{"ide0  0:0:0 hda", "ide0  0:0:1 hdb", "ide0  1:0:0 hdc", "ide0  1:0:1 hdd"}, 0},
		{"UEFI with IDE", "", UEFI, []Disk{at("ide", 0, 1)}, []string{"ide0  0:0:1 hdb"}, 0},
		{"old Windows on parallel SCSI", "winXPProGuest", BIOS, []Disk{at("lsilogic", 0, 0)}, []string{"ide0  0:0:0 hda"}, 1},
		{"five BusLogic disks", "", BIOS, []Disk{at("buslogic", 0, 0), at("buslogic", 0, 1), at("buslogic", 0, 2), at("buslogic", 0, 3), at("buslogic", 0, 4)}, []string{"ide0  0:0:0 hda", "ide0  0:0:1 hdb", "ide0  1:0:0 hdc", "ide0  1:0:1 hdd", "sata0  0:0:0 sda"}, 6},
		{"unknown", "", BIOS, []Disk{at("", 0, 0), at("vmd", 0, 1)}, []string{"sata0  0:0:0 sda", "sata0  0:0:1 sdb"}, 2},
		{"IDE beyond the channels", "", BIOS, []Disk{at("ide", 2, 0)}, []string{"ide0  0:0:0 hda"}, 0},
		{"nvme falls back beside sata", "", UEFI, []Disk{at("nvme", 0, 0), at("sata", 0, 0)}, []string{"sata0  0:0:1 sda", "sata0  0:0:0 sdb"}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc, notes, err := Build(Domain{Name: "n", BIOSUUID: biosUUID, GuestID: tt.guest, CPUs: 1, MemoryMiB: 1, Firmware: tt.fw, Disks: tt.disks}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			dom := parse(t, doc)
			models := map[string]string{}
			for _, c := range dom.Devices.Controllers {
				models[fmt.Sprintf("%s%d", c.Type, *c.Index)] = c.Model
			}
			var got []string
			for _, d := range dom.Devices.Disks {
				a := d.Address.Drive
				c := fmt.Sprintf("%s%d", d.Target.Bus, *a.Controller)
				got = append(got, fmt.Sprintf("%s %s %d:%d:%d %s", c, models[c], *a.Bus, *a.Target, *a.Unit, d.Target.Dev))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("places are %q, want %q", got, tt.want)
			}
			n := 0
			for _, note := range notes {
				if strings.Contains(note, " disk at ") || strings.Contains(note, "controller") {
					n++
				}
			}
			if n != tt.notes {
				t.Errorf("%d notes about disks, want %d: %q", n, tt.notes, notes)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	good := func() Domain { return Domain{Name: "n", CPUs: 1, MemoryMiB: 1} }
	disk := Disk{Path: "/d", Format: "raw", Controller: "sata"}
	with := func(change func(*Disk)) func(*Domain, *Options) {
		return func(d *Domain, _ *Options) {
			bad := disk
			change(&bad)
			d.Disks = []Disk{bad}
		}
	}
	tests := []struct {
		want   string
		change func(*Domain, *Options)
	}{
		{"0 CPUs", func(d *Domain, _ *Options) { d.CPUs = 0 }},
		{"5000 CPUs", func(d *Domain, _ *Options) { d.CPUs = 5000 }},
		{"-1 cores", func(d *Domain, _ *Options) { d.CoresPerSocket = -1 }},
		{"0 MiB", func(d *Domain, _ *Options) { d.MemoryMiB = 0 }},
		{"of memory", func(d *Domain, _ *Options) { d.MemoryMiB = 1 << 62 }},
		{"firmware", func(d *Domain, _ *Options) { d.Firmware = "openfirmware" }},
		{"secure boot without", func(d *Domain, _ *Options) { d.SecureBoot = true }},
		{"clock", func(d *Domain, _ *Options) { d.Clock = "mars" }},
		{"disks", func(d *Domain, _ *Options) { d.Disks = make([]Disk, 600) }},
		{"network adapters", func(d *Domain, _ *Options) { d.NICs = make([]NIC, 65) }},
		{"other devices", func(d *Domain, _ *Options) { d.OtherDevices = make([]string, 300) }},
		{"both at sata0:0", func(d *Domain, _ *Options) { d.Disks = []Disk{disk, disk} }},
		{"not absolute", with(func(d *Disk) { d.Path = "a.qcow2" })},
		{"bytes that XML cannot", with(func(d *Disk) { d.Path = "/a\nb" })},
		{"bytes that XML cannot", with(func(d *Disk) { d.Path = "/a\xff" })},
		{"format", with(func(d *Disk) { d.Format = "vmdk" })},
		{"bus -1", with(func(d *Disk) { d.Bus = -1 })},
		{"unit 256", with(func(d *Disk) { d.Unit = 256 })},
		{"hardware", func(_ *Domain, o *Options) { o.Hardware = "xen" }},
		{"CPU mode", func(_ *Domain, o *Options) { o.CPU = "386" }},
		{"map network", func(_ *Domain, o *Options) { o.NetworkMap = map[string]NetworkTarget{"x": {Bridge: "a b"}} }},
	}
	for _, tt := range tests {
		spec, opts := good(), Options{}
		tt.change(&spec, &opts)
		if doc, _, err := Build(spec, opts); err == nil || !strings.Contains(err.Error(), tt.want) || doc != nil {
			t.Errorf("error is %v with %d bytes, want one about %q", err, len(doc), tt.want)
		}
	}
	if _, _, err := Build(good(), Options{}); err != nil {
		t.Error(err)
	}
}

func TestNames(t *testing.T) {
	for in, want := range map[string]string{
		"web":                                 "web",
		"a/b":                                 "a-b",
		"a\nb\x00c\u0085":                     "a-b-c-",
		" padded ":                            "padded",
		"":                                    "vm",
		"..":                                  "vm",
		"\xff":                                "-",
		"\uFFFE":                              "-",
		strings.Repeat("ä", 150):              strings.Repeat("ä", 100),
		strings.Repeat("x", 199) + " " + "yy": strings.Repeat("x", 199),
		"東京 [prod] <&>":                       "東京 [prod] <&>",
	} {
		got, changed := domainName(in)
		if got != want || changed != (in != want) {
			t.Errorf("domainName(%q) is %q, %v; want %q", in, got, changed, want)
		}
	}
}

func TestParseNetworkMap(t *testing.T) {
	got, err := ParseNetworkMap([]string{"VM Network=br0", "x=network:default", "a=b=bridge:br1", "*=network:office lan"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]NetworkTarget{"VM Network": {Bridge: "br0"}, "x": {Network: "default"}, "a=b": {Bridge: "br1"}, "*": {Network: "office lan"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("map is %v, want %v", got, want)
	}
	for _, target := range want {
		again, err := ParseNetworkMap([]string{"n=" + target.String()})
		if err != nil || again["n"] != target {
			t.Errorf("%s reads back as %v, %v", target, again["n"], err)
		}
	}
	for _, bad := range [][]string{
		{""}, {"br0"}, {"=br0"}, {"n="}, {"n=network:"}, {"n=bridge:"}, {"n=a b"}, {"n=a/b"}, {"n=averyveryverylongname"},
		{"n=network:a/b"}, {"n=network:a\nb"}, {"n=-x"}, {"n=br0", "n=br1"},
	} {
		if m, err := ParseNetworkMap(bad); err == nil {
			t.Errorf("%q is taken as %v", bad, m)
		}
	}
}

func TestGuests(t *testing.T) {
	tests := []struct {
		id                     string
		windows, legacy, linux bool
		osinfo                 string
	}{
		{"windows2019srv_64Guest", true, false, false, "http://microsoft.com/win/2k19"},
		{"windows9Server64Guest", true, false, false, "http://microsoft.com/win/2k16"},
		{"windows12_64Guest", true, false, false, ""},
		{"winNetDatacenter64Guest", true, true, false, "http://microsoft.com/win/2k3"},
		{"winLonghorn64Guest", true, false, false, "http://microsoft.com/win/2k8"},
		{"dosGuest", false, true, false, ""},
		{"darwin21_64Guest", false, false, false, ""},
		{"rhel9_64Guest", false, false, true, "http://redhat.com/rhel/9-unknown"},
		{"rhel6Guest", false, false, true, "http://redhat.com/rhel/6-unknown"},
		{"ubuntu64Guest", false, false, true, genericLinux},
		{"other26xLinux64Guest", false, false, true, genericOldLinux},
		{"otherLinux64Guest", false, false, true, genericLinux},
		{"otherGuest64", false, false, false, ""},
		{"", false, false, false, ""},
	}
	for _, tt := range tests {
		if got, want := guestOf(tt.id), (guest{tt.windows, tt.legacy, tt.linux, tt.osinfo}); got != want {
			t.Errorf("%q is %+v, want %+v", tt.id, got, want)
		}
	}
}

func TestLetters(t *testing.T) {
	for n, want := range map[int]string{0: "a", 25: "z", 26: "aa", 51: "az", 52: "ba", 701: "zz", 702: "aaa"} {
		if got := letters(n); got != want {
			t.Errorf("letters(%d) is %q, want %q", n, got, want)
		}
	}
}

func TestVideoRAM(t *testing.T) {
	for in, want := range map[int64]uint{0: 16384, -5: 16384, 4096: 16384, 16385: 32768, 40000: 65536, 1 << 40: 65536} {
		if got := videoRAM(in); got != want {
			t.Errorf("videoRAM(%d) is %d, want %d", in, got, want)
		}
	}
}

// FuzzBuild: whatever vCenter says, the document parses, holds the values
// where they belong, and libvirt's rules for the name hold.
func FuzzBuild(f *testing.F) {
	f.Add("web/01", "VM <Network>", "lsilogic", "vmxnet3", "00:50:56:00:00:01", "rhel8_64Guest", biosUUID, 0, 0, 2)
	f.Add("]]>\x00<!--", "a\"&'", "NVMe", "sriov", "zz", "windows9_64Guest", "x", 3, 29, 300)
	f.Fuzz(func(t *testing.T, name, network, controller, model, mac, guestID, uuid string, bus, unit, cpus int) {
		spec := Domain{
			Name: name, BIOSUUID: uuid, InstanceUUID: uuid, GuestID: guestID, CPUs: cpus, CoresPerSocket: 2, MemoryMiB: 64,
			Disks: []Disk{
				{Path: "/x/" + name, Format: "raw", Controller: controller, Bus: bus, Unit: unit},
				{Path: "/y", Format: "qcow2", Controller: "pvscsi", Bus: 0, Unit: 1},
			},
			NICs:         []NIC{{Model: model, MAC: mac, Network: network}},
			OtherDevices: []string{model},
			NVRAM:        network,
		}
		for _, hw := range []Hardware{Same, Virtio} {
			doc, notes, err := Build(spec, Options{Hardware: hw, NVMe: unit%2 == 0})
			if err != nil {
				if doc != nil {
					t.Fatal("a document with an error")
				}
				return
			}
			dom := parse(t, doc)
			if dom.Name == "" || strings.ContainsAny(dom.Name, "/\n") || len(dom.Name) > maxNameByte {
				t.Fatalf("name %q", dom.Name)
			}
			if want, _ := domainName(name); dom.Name != want {
				t.Fatalf("name is %q, want %q", dom.Name, want)
			}
			if len(dom.Devices.Disks) != 2 || len(dom.Devices.Interfaces) != 1 {
				t.Fatalf("%d disks and %d interfaces", len(dom.Devices.Disks), len(dom.Devices.Interfaces))
			}
			if got := dom.Devices.Disks[0].Source.File.File; got != "/x/"+name {
				t.Fatalf("path is %q, want %q", got, "/x/"+name)
			}
			for _, n := range notes {
				if strings.ContainsFunc(n, notXML) {
					t.Fatalf("note %q is not safe to print", n)
				}
			}
		}
	})
}
