package runner

import (
	"context"
	"errors"
	"strings"

	"github.com/hyper2kvm/hyper2kvm/internal/export"
	"github.com/hyper2kvm/hyper2kvm/internal/output"
	"github.com/hyper2kvm/hyper2kvm/internal/stream"
	"github.com/hyper2kvm/hyper2kvm/vsphere"
)

// lease is a vSphere lease as the pipeline sees it.
type lease struct {
	*vsphere.Lease
	host      string           // whose streams it gives
	allocated map[string]int64 // see allocated
}

// emptyDisk is what a thin disk without data counts for, in bytes: the host
// still has to look.
const emptyDisk = 1 << 20

// allocated gives by label what each disk takes on the datastore, in bytes, or
// nothing when the server does not say it of all: a disk with all its space
// cannot take none.
func allocated(disks []vsphere.Disk) map[string]int64 {
	sizes := map[string]int64{}
	var sum int64
	for _, d := range disks {
		if d.Allocated == 0 && !d.Thin {
			return nil
		}
		sum += d.Allocated
		sizes[d.Label] = max(emptyDisk, d.Allocated)
	}
	if sum == 0 {
		return nil
	}
	return sizes
}

var roles = map[vsphere.ItemKind]output.Role{
	vsphere.ItemDisk:  output.RoleDisk,
	vsphere.ItemNVRAM: output.RoleNVRAM,
	vsphere.ItemMedia: output.RoleMedia,
	vsphere.ItemOther: output.RoleOther,
}

// Items is part of export.Lease.
func (l *lease) Items() []export.Item {
	var items []export.Item
	for _, i := range l.Lease.Items() {
		role := roles[i.Kind]
		items = append(items, export.Item{
			Key: i.Key, Label: i.Label, Role: role, TargetID: i.TargetID,
			Size: i.Size, Capacity: i.Capacity, Allocated: l.allocated[i.Label], Host: l.host,
			Source: source{stream.HTTP{Client: l.HTTPClient(i), URL: i.URL}},
		})
	}
	return items
}

// source is a device URL. A certificate that is not trusted will not be so at
// the next attempt.
type source struct{ http stream.HTTP }

// Open is part of stream.Source.
func (s source) Open(ctx context.Context, offset int64) (*stream.Body, error) {
	body, err := s.http.Open(ctx, offset)
	if _, untrusted := errors.AsType[*vsphere.CertificateError](err); untrusted {
		return nil, &stream.PermanentError{Err: err}
	}
	return body, err
}

// Manifest is part of export.Lease.
func (l *lease) Manifest(ctx context.Context) ([]export.Digest, error) {
	entries, err := l.Lease.Manifest(ctx)
	if err != nil {
		return nil, err
	}
	digests := make([]export.Digest, len(entries))
	for i, e := range entries {
		d := export.Digest{Key: e.Key, SHA1: e.SHA1, Size: e.Size, Capacity: e.Capacity, PopulatedSize: e.PopulatedSize}
		switch kind := strings.ToLower(strings.ReplaceAll(e.ChecksumType, "-", "")); {
		case e.Checksum == "":
		case kind == "sha256":
			d.SHA256 = e.Checksum
		case kind == "sha1":
			d.SHA1 = e.Checksum
		}
		digests[i] = d
	}
	return digests, nil
}

// SendsSHA256 is part of export.Lease.
func (l *lease) SendsSHA256() bool { return l.ChecksumType() == "sha256" }
