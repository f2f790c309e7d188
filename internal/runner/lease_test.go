package runner

import (
	"maps"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

func TestAllocated(t *testing.T) {
	for name, c := range map[string]struct {
		disks []vsphere.Disk
		want  map[string]int64
	}{
		"known":             {[]vsphere.Disk{{Label: "a", Allocated: 5 << 20}, {Label: "b", Allocated: 9 << 30, Thin: true}}, map[string]int64{"a": 5 << 20, "b": 9 << 30}},
		"one is empty":      {[]vsphere.Disk{{Label: "a", Allocated: 5 << 20}, {Label: "b", Thin: true}}, map[string]int64{"a": 5 << 20, "b": emptyDisk}},
		"a thick one lacks": {[]vsphere.Disk{{Label: "a", Allocated: 5 << 20}, {Label: "b"}}, nil},
		"nothing is known":  {[]vsphere.Disk{{Label: "a", Thin: true}, {Label: "b", Thin: true}}, nil},
		"no disks":          {nil, nil},
	} {
		if got := allocated(c.disks); !maps.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}
