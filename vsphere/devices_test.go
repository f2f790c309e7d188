package vsphere

import (
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/vmware/govmomi/vim25/types"
)

func TestAssign(t *testing.T) {
	all := []Disk{
		{Label: "1", Controller: "VirtualLsiLogicController", Bus: 0, Unit: 0},
		{Label: "2", Controller: "VirtualLsiLogicController", Bus: 0, Unit: 1},
		{Label: "3", Controller: "VirtualLsiLogicController", Bus: 1, Unit: 1},
		{Label: "4", Controller: "VirtualAHCIController", Bus: 0, Unit: 1},
	}
	yes, no := true, false
	type urls = []types.HttpNfcLeaseDeviceUrl
	for _, tt := range []struct {
		name string
		all  []Disk
		urls urls
		want []int
	}{
		{"by key", all, urls{
			{Key: "/vm-12/VirtualAHCIController0:1", Disk: &yes}, {Key: "/vm-12/VirtualLsiLogicController1:1", Disk: &yes},
			{Key: "/vm-12/VirtualLsiLogicController0:0", Disk: &yes}, {Key: "/vm-12/VirtualLsiLogicController0:1", Disk: &yes},
		}, []int{3, 2, 0, 1}},
		{"nvram between", all[:1], urls{{Key: "/vm-12/nvram", Disk: &no}, {Key: "/vm-12/VirtualLsiLogicController0:0", Disk: &yes}}, []int{-1, 0}},
		{"by order", all[:2], urls{{Key: "disk-0", Disk: &yes}, {Key: "x", Disk: &no}, {Key: "disk-1", Disk: &yes}}, []int{0, -1, 1}},
		{"one known, the rest by order", all[:2], urls{{Key: "?", Disk: &yes}, {Key: "/vm/VirtualLsiLogicController0:0", Disk: &yes}}, []int{1, 0}},
		{"counts differ", all, urls{{Key: "a", Disk: &yes}, {Key: "b", Disk: &yes}}, []int{-1, -1}},
		{"import key", all[:1], urls{{Key: "?", ImportKey: "/vm/VirtualLsiLogicController0:0", Disk: &yes}}, []int{0}},
		{"twice the same", all[:1], urls{{Key: "/a/VirtualLsiLogicController0:0", Disk: &yes}, {Key: "/b/VirtualLsiLogicController0:0", Disk: &yes}}, []int{0, -1}},
		{"disk not said", all[:1], urls{{Key: "/vm/VirtualLsiLogicController0:0"}}, []int{0}},
		{"huge numbers", all[:1], urls{{Key: "/vm/VirtualLsiLogicController99999999999999999999:0", Disk: &no}}, []int{-1}},
		{"no hardware", nil, urls{{Key: "/vm/VirtualLsiLogicController0:0", Disk: &yes}}, []int{-1}},
		{"empty", all, nil, []int{}},
	} {
		if got := assign(tt.all, tt.urls); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestClassifyItem(t *testing.T) {
	yes, no := true, false
	for _, tt := range []struct {
		url  types.HttpNfcLeaseDeviceUrl
		disk bool
		want ItemKind
	}{
		{types.HttpNfcLeaseDeviceUrl{Disk: &yes, TargetId: "disk-0.vmdk"}, true, ItemDisk},
		{types.HttpNfcLeaseDeviceUrl{Disk: &yes}, false, ItemDisk},
		{types.HttpNfcLeaseDeviceUrl{TargetId: "disk-0.vmdk"}, false, ItemDisk},
		{types.HttpNfcLeaseDeviceUrl{}, true, ItemDisk},
		{types.HttpNfcLeaseDeviceUrl{Disk: &no, TargetId: "VM.NVRAM"}, false, ItemNVRAM},
		{types.HttpNfcLeaseDeviceUrl{Disk: &no, Key: "/vm-12/nvram"}, false, ItemNVRAM},
		{types.HttpNfcLeaseDeviceUrl{Disk: &no, Url: "https://h/nfc/1/file-0.nvram?x=.iso"}, false, ItemNVRAM},
		{types.HttpNfcLeaseDeviceUrl{Disk: &no, TargetId: "debian.iso"}, false, ItemMedia},
		{types.HttpNfcLeaseDeviceUrl{Disk: &no, Url: "https://h/nfc/1/floppy.flp"}, false, ItemMedia},
		{types.HttpNfcLeaseDeviceUrl{Disk: &no, TargetId: "disk-0.vmdk"}, false, ItemOther},
		{types.HttpNfcLeaseDeviceUrl{}, false, ItemOther},
	} {
		if got := classifyItem(tt.url, tt.disk); got != tt.want {
			t.Errorf("%+v: got %s, want %s", tt.url, got, tt.want)
		}
	}
}

func TestAllocated(t *testing.T) {
	const extent = string(types.VirtualMachineFileLayoutExFileTypeDiskExtent)
	got := allocated(types.VirtualMachineFileLayoutEx{
		File: []types.VirtualMachineFileLayoutExFileInfo{
			{Key: 1, Type: "diskDescriptor", Size: 500}, {Key: 2, Type: extent, Size: 1000},
			{Key: 3, Type: extent, Size: 30}, {Key: 4, Type: extent, Size: -7}, {Key: 5, Type: extent, Size: math.MaxInt64},
		},
		Disk: []types.VirtualMachineFileLayoutExDiskLayout{
			{Key: 2000, Chain: []types.VirtualMachineFileLayoutExDiskUnit{{FileKey: []int32{1, 2}}, {FileKey: []int32{3}}}},
			{Key: 2001, Chain: []types.VirtualMachineFileLayoutExDiskUnit{{FileKey: []int32{4, 99}}}},
			{Key: 2002, Chain: []types.VirtualMachineFileLayoutExDiskUnit{{FileKey: []int32{5, 5}}}},
		},
	})
	if want := map[int32]int64{2000: 1030, 2002: math.MaxInt64}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestDisks(t *testing.T) {
	yes := true
	number := func(n int32) *int32 { return &n }
	got := disks([]types.BaseVirtualDevice{
		&types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{VirtualController: types.VirtualController{VirtualDevice: types.VirtualDevice{Key: 1000}, BusNumber: 2}}},
		&types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: 2000, ControllerKey: 1000, UnitNumber: number(3), DeviceInfo: &types.Description{Label: "Hard disk 1"},
			Backing: &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: "[ds 1] a/b.vmdk"}, ThinProvisioned: &yes, DiskMode: "persistent", ContentId: "c"}}, CapacityInKB: 10},
		&types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: 2001, ControllerKey: 7, Backing: &types.VirtualDiskRawDiskMappingVer1BackingInfo{}}, CapacityInBytes: 512},
		&types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: 2002}},
	})
	want := []Disk{
		{Key: 2000, Label: "Hard disk 1", Controller: "ParaVirtualSCSIController", Bus: 2, Unit: 3, Capacity: 10 << 10, Thin: true, Mode: "persistent", Datastore: "ds 1", File: "[ds 1] a/b.vmdk", ContentID: "c"},
		{Key: 2001, Label: "disk 2001", Capacity: 512, RDM: true},
		{Key: 2002, Label: "disk 2002"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
