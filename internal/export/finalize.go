package export

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/output"
	"github.com/hyper2kvm/hyper2kvm/internal/ovf"
)

// streamOf is what the host sent for a file.
func streamOf(f output.File) output.Stream {
	if f.Stream != nil {
		return *f.Stream
	}
	return output.Stream{Size: f.Size, SHA256: f.SHA256, SHA1: f.SHA1}
}

// describe asks for the descriptor that names the streams, under the names and
// with the sizes they have, and checks it.
func (r *run) describe(ctx context.Context, tasks []*task) (xml []byte, d *ovf.Descriptor, err error) {
	named := make([]DescriptorFile, len(tasks))
	sizes := make(map[string]int64, len(tasks))
	for i, t := range tasks {
		f := t.files[0]
		named[i] = DescriptorFile{Key: t.item.Key, Name: t.stream, Size: streamOf(f).Size, Capacity: f.Capacity, PopulatedSize: f.PopulatedSize}
		sizes[t.stream] = named[i].Size
	}
	xml, warnings, err := r.origin.Descriptor(ctx, r.plan.VM.Name, named)
	if err != nil {
		return nil, nil, fmt.Errorf("create descriptor: %w", err)
	}
	for _, w := range warnings {
		r.warn("vCenter about the descriptor", slog.String("warning", w))
	}
	if xml, err = ovf.SetFileSizes(xml, sizes); err != nil {
		return nil, nil, fmt.Errorf("descriptor from vCenter: %w", err)
	}
	if d, err = ovf.ParseDescriptor(xml); err == nil {
		err = r.checkDescriptor(d, tasks, sizes)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("descriptor from vCenter: %w", err)
	}
	return xml, d, nil
}

// checkDescriptor holds the descriptor against the files. One that leaves a
// disk out is useless; one that leaves out a file beside the disks is used,
// and said so.
func (r *run) checkDescriptor(d *ovf.Descriptor, tasks []*task, sizes map[string]int64) error {
	named := make(map[string]bool, len(d.Files))
	for _, f := range d.Files {
		named[f.Name()] = true
	}
	for _, t := range tasks {
		if t.item.Role != output.RoleDisk && !named[t.stream] {
			r.warn("the descriptor does not mention a file", slog.String("file", t.stream))
			delete(sizes, t.stream)
		}
	}
	return d.Check(sizes)
}

// finalize writes the descriptor, what else the format asks for, and the
// receipt.
func (r *run) finalize(ctx context.Context, stem, inner string, tasks []*task) (Result, error) {
	xml, _, err := r.describe(ctx, tasks)
	if err != nil {
		return Result{}, err
	}
	var files []output.File
	for _, t := range tasks {
		files = append(files, t.files...)
	}
	receipt := output.Receipt{
		Tool: "hyper2kvm", Version: r.plan.Version, Format: string(r.plan.Format),
		VM: r.plan.VM, Hardware: r.plan.Hardware, Snapshot: r.plan.Snapshot,
		Verified: !slices.ContainsFunc(files, func(f output.File) bool {
			return f.Role == output.RoleDisk && f.Proof != output.ProofHost
		}),
		Started: r.journal.Started(),
	}
	receipt.Hardware.Removed = r.journal.Removed()
	result := Result{OVF: stem + ".ovf"}
	if r.archive != nil {
		result.OVF = r.archive.name
		if receipt.Files, receipt.Contents, err = r.finishArchive(ctx, inner, xml, tasks); err != nil {
			return Result{}, err
		}
	} else {
		made, err := r.finishFolder(stem, xml, tasks, &receipt, &result)
		if err != nil {
			return Result{}, err
		}
		receipt.Files = slices.Concat(made[:1], files, made[1:])
	}
	receipt.Warnings, receipt.Completed = r.warnings, time.Now().UTC()
	if err := r.journal.Complete(receipt); err != nil {
		return Result{}, err
	}
	r.tracker.Remark(slog.LevelInfo, "export is whole", slog.Int("files", len(receipt.Files)),
		slog.Int64("totalSize", receipt.Size()), slog.Bool("verified", receipt.Verified))
	result.Receipt = receipt
	return result, nil
}

// finishFolder writes what belongs beside the files: the descriptor, the
// manifest if the streams it names are there, and the libvirt domain if there
// are images.
func (r *run) finishFolder(stem string, xml []byte, tasks []*task, receipt *output.Receipt, result *Result) ([]output.File, error) {
	descriptor, err := r.put(stem+".ovf", output.RoleDescriptor, xml)
	if err != nil {
		return nil, err
	}
	made := []output.File{descriptor}
	if !r.plan.converts() || r.plan.KeepStream {
		listed := []output.File{descriptor}
		for _, t := range tasks {
			listed = append(listed, t.files[len(t.files)-1])
		}
		text, err := manifestText(listed)
		if err != nil {
			return nil, err
		}
		manifest, err := r.put(stem+".mf", output.RoleManifest, text)
		if err != nil {
			return nil, err
		}
		made = append(made, manifest)
	}
	if !r.plan.converts() {
		return made, nil
	}
	nvram := ""
	for _, t := range tasks {
		if t.item.Role == output.RoleNVRAM {
			nvram = t.name
		}
	}
	text, notes, err := r.origin.Domain(r.domainDisks(tasks), nvram)
	if err != nil {
		return nil, err
	}
	receipt.Notes = notes
	for _, n := range notes {
		r.tracker.Remark(slog.LevelDebug, "about the libvirt domain", slog.String("note", n))
	}
	result.Domain = stem + ".xml"
	domain, err := r.put(result.Domain, output.RoleDomain, text)
	if err != nil {
		return nil, err
	}
	return append(made, domain), nil
}

// domainDisks are the images of the tasks.
func (r *run) domainDisks(tasks []*task) []DomainDisk {
	var disks []DomainDisk
	for _, t := range tasks {
		if t.item.Role == output.RoleDisk {
			disks = append(disks, DomainDisk{Key: t.item.Key, Label: t.item.Label, Path: r.plan.Folder.Path(t.name), Format: r.plan.Format})
		}
	}
	return disks
}
