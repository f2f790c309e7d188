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
	host string // whose streams it gives
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
			Size: i.Size, Capacity: i.Capacity, Host: l.host,
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
