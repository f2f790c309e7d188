package lab

import "fmt"

const fullInventory = 201

// SpecialVMs gives the VMs that every lab has. The ones that are there for
// their state or shape have a note.
func SpecialVMs() []VMSpec {
	return []VMSpec{
		{Path: "/DC0/vm/Production/web01", Disks: []DiskSpec{{Capacity: 4 * mib}}, Note: "one small disk"},
		{Path: "/DC0/vm/Production/db01", CPUs: 8, MemoryMB: 16384, Controller: "pvscsi", Note: "four disks", Disks: []DiskSpec{
			{Capacity: 8 * mib, Pattern: PatternMixed},
			{Capacity: 4 * mib, Pattern: PatternText},
			{Capacity: 3 * mib, Pattern: PatternRandom},
			{Capacity: gib, Pattern: PatternSparse},
		}},
		{Path: "/DC0/vm/Production/uefi01", UEFI: true, CDROM: true, Controller: "pvscsi", Disks: []DiskSpec{{Capacity: 4 * mib, Pattern: PatternMixed}}, Note: "UEFI with NVRAM, empty CD-ROM drive"},
		{Path: "/DC0/vm/Production/running01", PoweredOn: true, Disks: []DiskSpec{{Capacity: 4 * mib}, {Capacity: 2 * mib, Pattern: PatternRandom}}, Note: "powered on, VMware Tools running"},
		{Path: "/DC0/vm/Production/running02", PoweredOn: true, NoTools: true, Disks: []DiskSpec{{Capacity: 2 * mib}}, Note: "powered on, no VMware Tools"},
		{Path: "/DC0/vm/Production/Linux/app01", Disks: []DiskSpec{{Capacity: 2 * mib}}, Note: "same name as one in Staging"},
		{Path: "/DC0/vm/Staging/Linux/app01", Disks: []DiskSpec{{Capacity: 2 * mib}}, Note: "same name as one in Production"},
		{Path: "/DC0/vm/Staging/file server 01", Disks: []DiskSpec{{Capacity: 2 * mib}}, Note: "spaces in the name"},
		{Path: "/DC0/vm/Staging/web%2fproxy", Disks: []DiskSpec{{Capacity: 2 * mib}}, Note: "a slash in the name"},
		{Path: "/DC0/vm/Staging/build [old] (2)", Disks: []DiskSpec{{Capacity: 2 * mib}}, Note: "brackets in the name"},
		{Path: "/DC0/vm/国際/日本語サーバー", Disks: []DiskSpec{{Capacity: 2 * mib}}, Note: "non-Latin letters"},
		{Path: "/DC0/vm/Ελλάδα/Εξυπηρετητής", Disks: []DiskSpec{{Capacity: 2 * mib}}, Note: "non-Latin letters"},
		{Path: "/DC0/vm/Windows/win2022", UEFI: true, SecureBoot: true, CPUs: 4, MemoryMB: 8192, GuestID: "windows2019srvNext_64Guest", Controller: "lsilogic-sas", NIC: "e1000e", Disks: []DiskSpec{{Capacity: 6 * mib, Pattern: PatternMixed}}, Note: "Windows, secure boot"},
		{Path: "/DC0/vm/Templates/golden", Template: true, Disks: []DiskSpec{{Capacity: 2 * mib}}, Note: "a template"},
		{Path: "/DC0/vm/Lab/snapshots01", Disks: []DiskSpec{{Capacity: 3 * mib}}, Snapshots: []SnapshotSpec{{"before upgrade", "taken by hand"}, {"after upgrade", ""}}, Note: "two snapshots"},
		{Path: "/DC0/vm/Lab/cdrom01", ISO: "tools.iso", Disks: []DiskSpec{{Capacity: 2 * mib}}, Note: "an ISO in the CD-ROM drive"},
		{Path: "/DC0/vm/Lab/cdrom-gone", ISO: "deleted.iso", ISOMissing: true, Disks: []DiskSpec{{Capacity: 2 * mib}}, Note: "an ISO whose file is gone: export fails until the drive is removed"},
		{Path: "/DC0/vm/Lab/empty-thin", Disks: []DiskSpec{{Capacity: gib, Pattern: PatternEmpty}}, Note: "a thin disk never written to"},
		{Path: "/DC0/vm/Lab/incompressible", Disks: []DiskSpec{{Capacity: 4 * mib, Pattern: PatternRandom}}, Note: "data that does not compress"},
		{Path: "/DC0/vm/Lab/odd-capacity", Disks: []DiskSpec{{Capacity: 10*mib + 7*sectorSize, Pattern: PatternMixed}}, Note: "capacity is no multiple of the grain"},
		{Path: "/DC0/vm/Lab/thin-2tib", Disks: []DiskSpec{{Capacity: 2 * tib, Pattern: PatternSparse, Allocated: 3 * mib}}, Note: "2 TiB, thin, with 3 MiB of data"},
		{Path: "/DC0/vm/Lab/mixed-buses", NVRAM: true, NIC: "e1000", Note: "disks on SATA, NVMe, IDE and SCSI", Disks: []DiskSpec{
			{Capacity: 2 * mib, Controller: "sata"}, {Capacity: 2 * mib, Controller: "nvme"},
			{Capacity: 2 * mib, Controller: "ide"}, {Capacity: 2 * mib, Controller: "lsilogic"},
		}},
		{Path: "/DC0/vm/Blocked/encrypted01", Encrypted: true, TPM: true, UEFI: true, Disks: []DiskSpec{{Capacity: mib}}, Note: "encrypted, with a virtual TPM: cannot be exported"},
		{Path: "/DC0/vm/Blocked/rdm01", Disks: []DiskSpec{{Capacity: mib}, {Capacity: mib, RDM: true}}, Note: "a raw device mapping: cannot be exported"},
	}
}

// fillers gives n plain VMs in nested folders.
func fillers(n int) []VMSpec {
	sites := []string{"Berlin", "Lagos", "Lima", "Osaka", "Toronto"}
	teams := []string{"Finance", "Mail", "Web/Front", "Web/Back"}
	specs := make([]VMSpec, n)
	for i := range specs {
		specs[i] = VMSpec{
			Path:      fmt.Sprintf("/DC0/vm/Sites/%s/%s/srv-%03d", sites[i%len(sites)], teams[i/len(sites)%len(teams)], i+1),
			Disks:     []DiskSpec{{Capacity: mib}},
			PoweredOn: i%7 == 3,
			MemoryMB:  1024 << (i % 4),
		}
	}
	return specs
}

// vms gives everything Start creates.
func (o *Options) vms() []VMSpec {
	specs := SpecialVMs()
	if o.Inventory == Full {
		specs = append(specs, fillers(fullInventory-len(specs))...)
	}
	return append(specs, o.ExtraVMs...)
}
