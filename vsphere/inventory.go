package vsphere

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const (
	// maxRestarts is how often an inventory read may begin again because its
	// session went away under it.
	maxRestarts = 3
	// maxDepth is more folders than anybody nests; it ends a loop in what the
	// server says.
	maxDepth = 256
)

// The properties that a summary is made of.
var (
	vmProperties = []string{
		"name", "parent", "parentVApp", "runtime.powerState", "runtime.host", "rootSnapshot",
		"config.firmware", "summary.config.instanceUuid", "summary.config.guestFullName", "summary.config.guestId",
		"summary.config.numCpu", "summary.config.memorySizeMB", "summary.config.template",
		"summary.storage.committed", "summary.storage.uncommitted",
	}
	ancestorProperties = []types.PropertySpec{
		{Type: "Folder", PathSet: []string{"name", "parent"}},
		{Type: "Datacenter", PathSet: []string{"name", "parent"}},
		{Type: "VirtualApp", PathSet: []string{"name", "parentFolder", "parentVApp"}},
		{Type: "HostSystem", PathSet: []string{"name"}},
	}
)

// traverse is a step of the property collector from one object to others.
func traverse(name, kind, path string, next ...string) types.BaseSelectionSpec {
	t := &types.TraversalSpec{SelectionSpec: types.SelectionSpec{Name: name}, Type: kind, Path: path}
	for _, n := range next {
		t.SelectSet = append(t.SelectSet, &types.SelectionSpec{Name: n})
	}
	return t
}

// fromVM leads to everything that a VM's path and host are made of.
var fromVM = []types.BaseSelectionSpec{
	traverse("parent", "ManagedEntity", "parent", "parent"),
	traverse("inVApp", "VirtualMachine", "parentVApp", "vappFolder", "vappParent"),
	traverse("vappFolder", "VirtualApp", "parentFolder", "parent"),
	traverse("vappParent", "VirtualApp", "parentVApp", "vappFolder", "vappParent"),
	traverse("runsOn", "VirtualMachine", "runtime.host"),
	traverse("network", "VirtualMachine", "network"),
	traverse("datastore", "VirtualMachine", "datastore"),
}

// ListVMs gives every VM and template the user may see, sorted by path.
func (c *Client) ListVMs(ctx context.Context) ([]VMSummary, error) {
	objects, err := c.everything(ctx)
	if err != nil {
		return nil, failure("list VMs", err)
	}
	inv := newInventory(c.content.RootFolder, objects)
	var vms []VMSummary
	for _, o := range objects {
		if o.Obj.Type == "VirtualMachine" {
			vms = append(vms, inv.summary(o))
		}
	}
	slices.SortFunc(vms, func(a, b VMSummary) int {
		return cmp.Or(strings.Compare(a.Path, b.Path), strings.Compare(a.MoRef, b.MoRef))
	})
	return vms, nil
}

// everything reads all VMs and what their paths are made of in one property
// collector round over a container view. A traversal from the root would need
// no view, but its steps from folders to vApps cost some servers a look at
// every resource pool for every VM.
func (c *Client) everything(ctx context.Context) ([]types.ObjectContent, error) {
	if c.content.ViewManager == nil {
		return nil, errors.New("the server has no view manager")
	}
	specs := append([]types.PropertySpec{{Type: "VirtualMachine", PathSet: vmProperties}}, ancestorProperties...)
	kinds := make([]string, len(specs))
	for i, s := range specs {
		kinds[i] = s.Type
	}
	for n := 0; ; n++ {
		res, err := methods.CreateContainerView(ctx, c.rt, &types.CreateContainerView{
			This: *c.content.ViewManager, Container: c.content.RootFolder, Type: kinds, Recursive: true,
		})
		if err != nil {
			return nil, err
		}
		view := res.Returnval
		objects, err := c.retrieve(ctx, types.PropertyFilterSpec{
			ObjectSet: []types.ObjectSpec{{
				Obj: view, Skip: types.NewBool(true),
				SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: "ContainerView", Path: "view"}},
			}},
			PropSet: specs,
		})
		if gone(err, view) && n < maxRestarts {
			continue // it went with the session it was made in
		}
		c.destroyView(ctx, view)
		return objects, err
	}
}

func (c *Client) destroyView(ctx context.Context, view types.ManagedObjectReference) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout/2)
	defer cancel()
	if _, err := methods.DestroyView(ctx, c.rt, &types.DestroyView{This: view}); err != nil {
		// It ends with the session at the latest.
		c.log.Debug("could not destroy view", slog.String("error", reason(err).Error()))
	}
}

// retrieve makes one property collector round, however many pages the server
// cuts it into.
func (a *api) retrieve(ctx context.Context, spec types.PropertyFilterSpec) ([]types.ObjectContent, error) {
	for n := 0; ; n++ {
		objects, err := a.retrieveOnce(ctx, spec)
		// A page's token belongs to the session that began the round.
		if !errors.Is(err, errRound) || n == maxRestarts {
			return objects, err
		}
	}
}

// errRound means that a property collector round broke off between pages.
var errRound = errors.New("the read broke off between two pages")

func (a *api) retrieveOnce(ctx context.Context, spec types.PropertyFilterSpec) ([]types.ObjectContent, error) {
	collector := a.content.PropertyCollector
	res, err := methods.RetrievePropertiesEx(ctx, a.rt, &types.RetrievePropertiesEx{
		This: collector, SpecSet: []types.PropertyFilterSpec{spec},
	})
	if err != nil {
		return nil, err
	}
	if res.Returnval == nil {
		return nil, nil
	}
	objects, token := res.Returnval.Objects, res.Returnval.Token
	for token != "" {
		res, err := methods.ContinueRetrievePropertiesEx(ctx, a.rt, &types.ContinueRetrievePropertiesEx{This: collector, Token: token})
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, ErrClosed) {
				return nil, err
			}
			return nil, fmt.Errorf("%w: %w", errRound, reason(err))
		}
		objects = append(objects, res.Returnval.Objects...)
		token = res.Returnval.Token
	}
	return objects, nil
}

// properties reads properties of one object; what is unset is not in the map.
func (a *api) properties(ctx context.Context, ref types.ManagedObjectReference, paths ...string) (map[string]any, error) {
	objects, err := a.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: ref}},
		PropSet:   []types.PropertySpec{{Type: ref.Type, PathSet: paths}},
	})
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		if o.Obj == ref {
			for _, m := range o.MissingSet {
				return nil, &taskError{&m.Fault}
			}
			return values(o), nil
		}
	}
	return nil, &taskError{&types.LocalizedMethodFault{Fault: &types.ManagedObjectNotFound{Obj: ref}}}
}

func values(o types.ObjectContent) map[string]any {
	m := make(map[string]any, len(o.PropSet))
	for _, p := range o.PropSet {
		m[p.Name] = p.Val
	}
	return m
}

// get takes a property of type T; the zero value stands for unset, and for a
// server that sends something else.
func get[T any](props map[string]any, name string) T {
	v, _ := props[name].(T)
	return v
}

// node is an object that paths lead through.
type node struct {
	name   string // as the server has it, %2f for a slash
	parent types.ManagedObjectReference
}

type inventory struct {
	root  types.ManagedObjectReference
	nodes map[types.ManagedObjectReference]node
	paths map[types.ManagedObjectReference]string // of folders; most VMs share theirs
}

func newInventory(root types.ManagedObjectReference, objects []types.ObjectContent) *inventory {
	inv := &inventory{
		root:  root,
		nodes: make(map[types.ManagedObjectReference]node, len(objects)),
		paths: map[types.ManagedObjectReference]string{},
	}
	for _, o := range objects {
		var n node
		for _, p := range o.PropSet {
			switch p.Name {
			case "name":
				n.name, _ = p.Val.(string)
			case "parent", "parentFolder":
				if ref, ok := p.Val.(types.ManagedObjectReference); ok {
					n.parent = ref
				}
			case "parentVApp":
				// ManagedEntity.parent is unset for what is in a vApp.
				if ref, ok := p.Val.(types.ManagedObjectReference); ok && n.parent.Value == "" {
					n.parent = ref
				}
			}
		}
		inv.nodes[o.Obj] = n
	}
	return inv
}

// path is the inventory path of ref as far up as the user may see. The root
// folder is not in it.
func (inv *inventory) path(ref types.ManagedObjectReference, depth int) string {
	if ref == inv.root || ref.Value == "" || depth > maxDepth {
		return ""
	}
	if p, ok := inv.paths[ref]; ok {
		return p
	}
	n, ok := inv.nodes[ref]
	if !ok || n.name == "" {
		return ""
	}
	p := inv.path(n.parent, depth+1) + "/" + escapeSlash(n.name)
	if ref.Type != "VirtualMachine" {
		inv.paths[ref] = p
	}
	return p
}

func (inv *inventory) summary(o types.ObjectContent) VMSummary {
	p := values(o)
	s := VMSummary{
		MoRef:        o.Obj.Value,
		Name:         unescapeName(get[string](p, "name")),
		Path:         inv.path(o.Obj, 0),
		InstanceUUID: get[string](p, "summary.config.instanceUuid"),
		PowerState:   string(get[types.VirtualMachinePowerState](p, "runtime.powerState")),
		GuestOS:      get[string](p, "summary.config.guestFullName"),
		GuestID:      get[string](p, "summary.config.guestId"),
		CPUs:         int(get[int32](p, "summary.config.numCpu")),
		MemoryMB:     int(get[int32](p, "summary.config.memorySizeMB")),
		Committed:    get[int64](p, "summary.storage.committed"),
		Uncommitted:  get[int64](p, "summary.storage.uncommitted"),
		Template:     get[bool](p, "summary.config.template"),
		Firmware:     get[string](p, "config.firmware"),
		HasSnapshots: len(get[types.ArrayOfManagedObjectReference](p, "rootSnapshot").ManagedObjectReference) > 0,
	}
	if host, ok := p["runtime.host"].(types.ManagedObjectReference); ok {
		s.Host = unescapeName(inv.nodes[host].name)
	}
	return s
}

// escapeSlash writes a name as a path's element. vCenter gives names escaped
// already, ESXi does not always.
func escapeSlash(name string) string { return strings.ReplaceAll(name, "/", "%2f") }

var unescaper = strings.NewReplacer("%2f", "/", "%2F", "/", "%5c", `\`, "%5C", `\`, "%25", "%")

// unescapeName undoes what vCenter does to / \ and % in names
// (ManagedEntity.name); any other percent sign stands for itself.
func unescapeName(name string) string { return unescaper.Replace(name) }

// elements splits a path for comparison, each element unescaped.
func elements(path string) []string {
	parts := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	for i := range parts {
		parts[i] = unescapeName(parts[i])
	}
	return parts
}

// FindVM finds the one VM that path means: an inventory path (absolute, or
// relative to a datacenter's VM folder), a name when it is unique, moref:vm-123
// or an instance UUID. Relative paths and names are those of Config.Datacenter,
// if it is set. It never guesses: what means several VMs is
// problem.Invalid with their full paths, what means none problem.NotFound with
// names that are close.
func (c *Client) FindVM(ctx context.Context, path string) (VMSummary, error) {
	what := fmt.Sprintf("find VM %q", path)
	if moref, ok := strings.CutPrefix(path, "moref:"); ok {
		objects, err := c.vmObjects(ctx, moref, nil)
		if err != nil {
			return VMSummary{}, failure(what, err)
		}
		return newInventory(c.content.RootFolder, objects).summary(objects[0]), nil
	}
	if strings.Trim(path, "/ ") == "" {
		return VMSummary{}, problem.New(problem.Invalid, what, errors.New("no VM is named"),
			"give an inventory path, a name, moref:vm-123 or an instance UUID")
	}
	if vm, ok := c.lookup(ctx, path); ok {
		return vm, nil
	}
	vms, err := c.ListVMs(ctx)
	if err != nil {
		return VMSummary{}, err
	}
	found := match(vms, path, c.datacenter)
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		if c.datacenter != "" {
			if elsewhere := match(vms, path, ""); len(elsewhere) > 0 {
				return VMSummary{}, problem.New(problem.NotFound, what, fmt.Errorf("no such VM in datacenter %q", c.datacenter),
					"give the full path, "+paths(elsewhere)+", or another datacenter")
			}
		}
		advice := "list the VMs to see their paths"
		if near := nearest(vms, path); len(near) > 0 {
			advice = "did you mean " + strings.Join(near, ", ") + "?"
		}
		return VMSummary{}, problem.New(problem.NotFound, what, fmt.Errorf("no such VM among %d", len(vms)), advice)
	}
	return VMSummary{}, problem.New(problem.Invalid, what, fmt.Errorf("%d VMs match: %s", len(found), paths(found)),
		"give the full path of one of them")
}

// paths lists the paths of VMs, the first of many, with the moref where two
// have the same one.
func paths(found []VMSummary) string {
	const most = 20
	var b strings.Builder
	for i, vm := range found {
		if i == most {
			fmt.Fprintf(&b, ", and %d more", len(found)-most)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(vm.Path)
		if i > 0 && found[i-1].Path == vm.Path || i+1 < len(found) && found[i+1].Path == vm.Path {
			b.WriteString(" (moref:" + vm.MoRef + ")")
		}
	}
	return b.String()
}

// lookup tries the server's own index, which spares reading the inventory for
// each job of a batch. What it does not find, or finds under another spelling,
// is left to match.
func (c *Client) lookup(ctx context.Context, path string) (VMSummary, bool) {
	rest, ok := strings.CutPrefix(path, "/")
	if !ok || c.content.SearchIndex == nil {
		return VMSummary{}, false
	}
	res, err := methods.FindByInventoryPath(ctx, c.rt, &types.FindByInventoryPath{This: *c.content.SearchIndex, InventoryPath: rest})
	if err != nil || res.Returnval == nil || res.Returnval.Type != "VirtualMachine" {
		return VMSummary{}, false
	}
	objects, err := c.vmObjects(ctx, res.Returnval.Value, nil)
	if err != nil {
		return VMSummary{}, false
	}
	vm := newInventory(c.content.RootFolder, objects).summary(objects[0])
	return vm, slices.Equal(elements(vm.Path), elements(path))
}

// match gives the VMs that path may mean. The exact reading wins: absolute
// path, then UUID, then relative path or name.
func match(vms []VMSummary, path, datacenter string) []VMSummary {
	want := elements(path)
	pick := func(f func(VMSummary) bool) []VMSummary {
		var out []VMSummary
		for _, vm := range vms {
			if f(vm) {
				out = append(out, vm)
			}
		}
		return out
	}
	if out := pick(func(vm VMSummary) bool {
		return strings.Contains(strings.Trim(path, "/"), "/") && slices.Equal(elements(vm.Path), want)
	}); len(out) > 0 {
		return out
	}
	if out := pick(func(vm VMSummary) bool { return vm.InstanceUUID != "" && strings.EqualFold(vm.InstanceUUID, path) }); len(out) > 0 {
		return out
	}
	if strings.HasPrefix(path, "/") {
		return nil
	}
	name := unescapeName(path)
	dc := elements(datacenter)
	return pick(func(vm VMSummary) bool {
		at, in := split(elements(vm.Path))
		if len(dc) > 0 && (len(at) < len(dc) || !slices.Equal(at[len(at)-len(dc):], dc)) {
			return false
		}
		return vm.Name == path || vm.Name == name || len(in) > 0 && slices.Equal(in, want)
	})
}

// split takes a VM's path apart: its datacenter, with the folders that is in,
// and the rest below the datacenter's VM folder, which vCenter calls "vm".
func split(elements []string) (datacenter, rest []string) {
	for i, e := range elements {
		if i > 0 && e == "vm" {
			return elements[:i], elements[i+1:]
		}
	}
	return nil, nil
}

// nearest gives the paths of up to five VMs whose names are like the one asked
// for.
func nearest(vms []VMSummary, path string) []string {
	e := elements(path)
	name := []rune(strings.ToLower(e[len(e)-1]))
	type candidate struct {
		path     string
		distance int
	}
	var near []candidate
	for _, vm := range vms {
		other := []rune(strings.ToLower(vm.Name))
		d := distance(name, other)
		limit := max(2, len(name)/3)
		if d > limit && len(name) >= 3 && strings.Contains(string(other), string(name)) {
			d = limit // part of the name: as good as the last of the others
		}
		if d <= limit && d < len(name) {
			near = append(near, candidate{vm.Path, d})
		}
	}
	slices.SortStableFunc(near, func(a, b candidate) int { return cmp.Compare(a.distance, b.distance) })
	var out []string
	for _, n := range near[:min(len(near), 5)] {
		out = append(out, n.path)
	}
	return out
}

// maxCompared keeps the comparison of a hostile name cheap.
const maxCompared = 128

// distance is the Levenshtein distance of the first maxCompared runes.
func distance(a, b []rune) int {
	a, b = a[:min(len(a), maxCompared)], b[:min(len(b), maxCompared)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range a {
		diagonal := row[0]
		row[0] = i + 1
		for j := range b {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// vmObjects reads one VM with more of its properties, and what lies around it.
// The VM is the first object.
func (c *Client) vmObjects(ctx context.Context, moref string, more []string) ([]types.ObjectContent, error) {
	ref := c.vmRef(moref)
	spec := types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: ref, SelectSet: fromVM}},
		PropSet: append([]types.PropertySpec{
			{Type: "VirtualMachine", PathSet: slices.Concat(vmProperties, more)},
			{Type: "Network", PathSet: []string{"name"}},
			{Type: "DistributedVirtualPortgroup", PathSet: []string{"key"}},
			{Type: "Datastore", PathSet: []string{"summary.accessible"}},
		}, ancestorProperties...),
	}
	objects, err := c.retrieve(ctx, spec)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(objects, func(o types.ObjectContent) bool { return o.Obj == ref })
	if i < 0 {
		return nil, &taskError{&types.LocalizedMethodFault{Fault: &types.ManagedObjectNotFound{Obj: ref}}}
	}
	objects[0], objects[i] = objects[i], objects[0]
	return objects, nil
}

// InspectVM reads what matters of one VM. moref is VMSummary.MoRef.
func (c *Client) InspectVM(ctx context.Context, moref string) (VM, error) {
	objects, err := c.vmObjects(ctx, moref, []string{
		"config.uuid", "config.version", "config.changeVersion", "config.hardware", "config.bootOptions", "config.keyId",
		"snapshot", "runtime.connectionState", "layoutEx",
	})
	if err != nil {
		return VM{}, failure("inspect VM "+moref, err)
	}
	inv := newInventory(c.content.RootFolder, objects)
	p := values(objects[0])
	vm := VM{
		VMSummary:       inv.summary(objects[0]),
		BIOSUUID:        get[string](p, "config.uuid"),
		HardwareVersion: get[string](p, "config.version"),
		ChangeVersion:   get[string](p, "config.changeVersion"),
	}
	if boot := get[types.VirtualMachineBootOptions](p, "config.bootOptions"); boot.EfiSecureBootEnabled != nil {
		vm.SecureBoot = *boot.EfiSecureBootEnabled
	}
	_, vm.Encrypted = p["config.keyId"].(types.CryptoKeyId)
	hardware := get[types.VirtualHardware](p, "config.hardware")
	if n := hardware.NumCoresPerSocket; n != nil {
		vm.CoresPerSocket = int(*n)
	}
	portgroups := map[string]string{}
	datastores := map[types.ManagedObjectReference]bool{}
	for _, o := range objects {
		q := values(o)
		switch o.Obj.Type {
		case "DistributedVirtualPortgroup":
			portgroups[get[string](q, "key")] = unescapeName(get[string](q, "name"))
		case "Datastore":
			datastores[o.Obj] = get[bool](q, "summary.accessible")
		}
	}
	readDevices(&vm, hardware.Device, inv, portgroups)
	used := allocated(get[types.VirtualMachineFileLayoutEx](p, "layoutEx"))
	for i := range vm.Disks {
		vm.Disks[i].Allocated = used[vm.Disks[i].Key]
	}
	for _, s := range get[types.VirtualMachineSnapshotInfo](p, "snapshot").RootSnapshotList {
		vm.Snapshots = appendSnapshots(vm.Snapshots, s, 0)
	}
	vm.Blockers = blockers(vm, get[types.VirtualMachineConnectionState](p, "runtime.connectionState"), hardware.Device, datastores)
	return vm, nil
}

func appendSnapshots(names []string, tree types.VirtualMachineSnapshotTree, depth int) []string {
	names = append(names, unescapeName(tree.Name))
	if depth < maxDepth {
		for _, s := range tree.ChildSnapshotList {
			names = appendSnapshots(names, s, depth+1)
		}
	}
	return names
}
