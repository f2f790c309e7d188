package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/hyper2kvm/hyper2kvm/internal/output"
	"github.com/hyper2kvm/hyper2kvm/internal/ovf"
	"github.com/hyper2kvm/hyper2kvm/progress"
)

// archive is an OVA in the making. The standard wants the descriptor and the
// manifest first, which are known last; so room is left for them, the other
// files follow one after another as they come, and nothing is written twice.
type archive struct {
	name    string
	partial *output.Partial
	room    int64 // for the descriptor, a multiple of ovf.HeaderSize
	front   int64 // what the manifest and the headers in front take
	end     int64 // where the next member's header goes
}

// start is where the first member's header is.
func (a *archive) start() int64 { return a.room + a.front }

// newArchive leaves room for twice as long a descriptor as a draft that has no
// sizes yet, and for a manifest of the length that mf has.
func newArchive(name string, p *output.Partial, draft, mf []byte) *archive {
	a := &archive{name: name, partial: p, front: 2*ovf.HeaderSize + padded(int64(len(mf)))}
	// In large steps, so that a later run comes to the same place.
	const step = 8 << 10
	a.room = (2*int64(len(draft)) + step - 1) / step * step
	a.end = a.start()
	return a
}

func padded(n int64) int64 { return n + ovf.Padding(n) }

// section is the body of one member of an archive.
type section struct {
	archive *archive
	name    string
	base    int64 // of its bytes
	size    int64
	placed  bool // its header is written
}

// begin makes the section of the next member. It holds what an earlier run
// left behind the members that are whole.
func (a *archive) begin(name string) *section {
	s := &section{archive: a, name: name, base: a.end + ovf.HeaderSize}
	s.size = max(0, a.partial.Size()-s.base)
	return s
}

func (s *section) Write(p []byte) (int, error) {
	n, err := s.archive.partial.WriteAt(p, s.base+s.size)
	s.size += int64(n)
	return n, err
}

func (s *section) ReadAt(p []byte, off int64) (int, error) {
	return s.archive.partial.ReadAt(p, s.base+off)
}

func (s *section) Size() int64 { return s.size }

func (s *section) Reader() io.Reader {
	return io.NewSectionReader(s.archive.partial, s.base, s.size)
}

func (s *section) Reset() error {
	if s.placed {
		s.archive.end = s.base - ovf.HeaderSize
	}
	s.size, s.placed = 0, false
	if s.archive.partial.Size() < s.base {
		return nil
	}
	return s.archive.partial.Truncate(s.base)
}

// Commit writes the member's header and the padding behind it.
func (s *section) Commit() error {
	if s.placed {
		return nil
	}
	header, err := ovf.MemberHeader(s.name, s.size)
	if err != nil {
		return err
	}
	a := s.archive
	if _, err := a.partial.WriteAt(header, s.base-ovf.HeaderSize); err != nil {
		return err
	}
	if _, err := a.partial.WriteAt(make([]byte, ovf.Padding(s.size)), s.base+s.size); err != nil {
		return err
	}
	if err := a.partial.Sync(); err != nil {
		return err
	}
	a.end = s.base + padded(s.size)
	s.placed = true
	return nil
}

func (s *section) Close() error   { return nil } // the archive is closed as a whole
func (s *section) Discard() error { return s.Reset() }

// fill makes a descriptor as long as the room for it, with line ends, which
// XML allows behind its root element.
func (a *archive) fill(descriptor []byte) []byte {
	return append(descriptor, bytes.Repeat([]byte("\n"), int(a.room)-len(descriptor))...)
}

// close writes what is missing in front and behind: the descriptor, filled,
// and the manifest.
func (a *archive) close(descriptor, manifest output.File, descriptorText, manifestText []byte) error {
	var front []byte
	for _, m := range []struct {
		name string
		data []byte
	}{{descriptor.Name, descriptorText}, {manifest.Name, manifestText}} {
		size := int64(len(m.data))
		header, err := ovf.MemberHeader(m.name, size)
		if err != nil {
			return err
		}
		front = slices.Concat(front, header, m.data, make([]byte, ovf.Padding(size)))
	}
	if int64(len(front)) != a.start() {
		return fmt.Errorf("descriptor and manifest take %d bytes of the archive, want %d", len(front), a.start())
	}
	if _, err := a.partial.WriteAt(front, 0); err != nil {
		return err
	}
	if err := a.partial.Truncate(a.end); err != nil {
		return err
	}
	_, err := a.partial.WriteAt(make([]byte, ovf.TrailerSize), a.end)
	return err
}

// widen makes room for a descriptor of size bytes by moving all members back.
// It gives how far. This is the only case in which an archive is written
// twice.
func (a *archive) widen(ctx context.Context, size int64) (by int64, err error) {
	by = padded(size) - a.room
	buf := make([]byte, 1<<20)
	for at := a.end; at > a.start(); {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		k := min(int64(len(buf)), at-a.start())
		at -= k
		if _, err := a.partial.ReadAt(buf[:k], at); err != nil {
			return 0, fmt.Errorf("read archive back: %w", err)
		}
		if _, err := a.partial.WriteAt(buf[:k], at+by); err != nil {
			return 0, err
		}
	}
	a.room += by
	a.end += by
	return by, nil
}

// archiveStem makes a stem one that fits into an archive's headers, which know
// ASCII and have 100 bytes for a name.
func archiveStem(stem string) string {
	const most = 80
	var b strings.Builder
	for _, r := range stem {
		if r < 0x20 || r > 0x7e {
			r = '_'
		}
		if b.WriteRune(r); b.Len() == most {
			break
		}
	}
	return output.Stem(b.String(), "vm")
}

// openArchive opens the OVA and puts the tasks into the order in which the
// descriptor refers to their files, which the standard wants them to have in
// the archive. Members that an earlier run finished are taken over as far as
// they follow one another.
func (r *run) openArchive(ctx context.Context, stem, inner string, tasks []*task) ([]*task, error) {
	for _, t := range tasks {
		t.files = []output.File{{Capacity: t.item.Capacity}}
	}
	draft, descriptor, err := r.describe(ctx, tasks)
	if err != nil {
		return nil, err
	}
	r.warnings = nil // they come again with the descriptor itself
	place := make(map[string]int, len(descriptor.Files))
	for i, f := range descriptor.Files {
		place[f.Name()] = i + 1
	}
	slices.SortStableFunc(tasks, func(a, b *task) int {
		last := len(place) + 1
		pa, pb := place[a.stream], place[b.stream]
		if pa == 0 {
			pa = last
		}
		if pb == 0 {
			pb = last
		}
		return pa - pb
	})
	listed := []output.File{madeHere(inner+".ovf", output.RoleDescriptor, nil)}
	for _, t := range tasks {
		listed = append(listed, madeHere(t.stream, t.item.Role, nil))
	}
	mf, err := manifestText(listed)
	if err != nil {
		return nil, err
	}
	name := stem + ".ova"
	partial, err := r.plan.Folder.Open(name)
	if err != nil {
		return nil, err
	}
	r.archive = newArchive(name, partial, draft, mf)
	var stale []string
	for i, t := range tasks {
		whole := r.finished(t)
		if whole && i == 0 {
			r.archive.room = t.files[0].Offset - ovf.HeaderSize - r.archive.front
			r.archive.end = r.archive.start()
			whole = r.archive.room > 0
		}
		whole = whole && len(stale) == 0 && t.files[0].Offset == r.archive.end+ovf.HeaderSize
		if whole {
			r.archive.end += ovf.HeaderSize + padded(t.files[0].Size)
		} else {
			stale = append(stale, t.name)
		}
		t.files = nil
	}
	if len(stale) == len(tasks) {
		// Nothing is taken over: not the room of an earlier draft either.
		r.archive = newArchive(name, partial, draft, mf)
	}
	return tasks, r.journal.Forget(stale...)
}

// inOrder is round for an archive: one file after the other.
func (r *run) inOrder(ctx context.Context, lease Lease, tasks []*task) (again []*task, err error) {
	defer func() {
		for _, t := range tasks {
			t.awaiting = nil // the archive is closed as a whole
		}
	}()
	for i, t := range tasks {
		err := r.fetch(ctx, lease, t)
		switch {
		case err == nil:
			continue
		case errors.Is(err, errAwaitsProof):
			// It takes its place now; whether it stays there the manifest says
			// when it is full.
			if err := t.awaiting.body.Commit(); err != nil {
				return nil, &localError{err}
			}
			continue
		case errors.Is(err, errNextLease):
			again = tasks[i:]
		default:
			return nil, err
		}
		break
	}
	for i, t := range tasks[:len(tasks)-len(again)] {
		if t.awaiting == nil {
			continue
		}
		err := r.settle(ctx, t)
		if err == nil {
			continue
		}
		// What follows it is cut off with it: it is taken again as well.
		if derr := r.dropFrom(tasks[i:]); derr != nil {
			return nil, derr
		}
		if errors.Is(err, errNextLease) {
			return tasks[i:], nil
		}
		return nil, err
	}
	return again, nil
}

// dropFrom takes files out of the end of the archive.
func (r *run) dropFrom(tasks []*task) error {
	var names []string
	for _, t := range tasks {
		names = append(names, t.name)
		t.files, t.awaiting = nil, nil
		t.handle.Holds(0, 0)
		t.handle.SetState(progress.Waiting)
	}
	return r.journal.Forget(names...)
}

// finishArchive completes the OVA.
func (r *run) finishArchive(ctx context.Context, inner string, xml []byte, tasks []*task) (files, contents []output.File, err error) {
	a := r.archive
	if int64(len(xml)) > a.room {
		if err := r.widenArchive(ctx, int64(len(xml)), tasks); err != nil {
			return nil, nil, err
		}
	}
	xml = a.fill(xml)
	descriptor := madeHere(inner+".ovf", output.RoleDescriptor, xml)
	contents = []output.File{descriptor}
	for _, t := range tasks {
		contents = append(contents, t.files[0])
	}
	text, err := manifestText(contents)
	if err != nil {
		return nil, nil, err
	}
	manifest := madeHere(inner+".mf", output.RoleManifest, text)
	if err := a.close(descriptor, manifest, xml, text); err != nil {
		return nil, nil, err
	}
	descriptor.Archive, descriptor.Offset = a.name, ovf.HeaderSize
	manifest.Archive, manifest.Offset = a.name, 2*ovf.HeaderSize+a.room
	contents = slices.Concat([]output.File{descriptor, manifest}, contents[1:])
	r.tracker.Enter(progress.Verifying)
	file := output.File{Name: a.name, Role: output.RoleArchive, Proof: output.ProofLocal}
	var sums output.Sums
	if file.Size, sums, err = a.partial.Sum(ctx, nil); err != nil {
		return nil, nil, err
	}
	file.SHA256, file.DataSHA256 = sums.SHA256, sums.Data
	if err := a.partial.Commit(); err != nil {
		return nil, nil, err
	}
	return []output.File{file}, contents, nil
}

// widenArchive moves the members of the archive. The journal forgets them
// meanwhile: half moved, they are nowhere.
func (r *run) widenArchive(ctx context.Context, size int64, tasks []*task) error {
	var names []string
	var files []output.File
	for _, t := range tasks {
		names = append(names, t.name)
	}
	if err := r.journal.Forget(names...); err != nil {
		return err
	}
	by, err := r.archive.widen(ctx, size)
	if err != nil {
		return err
	}
	for _, t := range tasks {
		t.files[0].Offset += by
		files = append(files, t.files[0])
	}
	return r.journal.Finish(files...)
}
