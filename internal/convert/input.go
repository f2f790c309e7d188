package convert

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // older manifests have no other hash
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hyper2kvm/hyper2kvm/internal/image"
	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
	"github.com/hyper2kvm/hyper2kvm/internal/ovf"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// input is what disks are read from: a folder or an archive.
type input struct {
	root     *os.Root // the folder of plain files; nil for an archive
	archive  *os.File
	members  map[string]entry // of the archive
	packaged bool             // an OVF package, as opposed to a single disk
	disks    []entry
	manifest map[string]ovf.Entry
	warnings []string

	mu     sync.Mutex
	opened []io.Closer
}

// entry is one file of an input.
type entry struct {
	name   string
	offset int64 // in an archive
	size   int64
}

// maxMembers bounds what is kept of an archive's table.
const maxMembers = 4096

// open finds out what a path is and which disks it has.
func open(path string) (in *input, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, problem.New(problem.NotFound, "", plain(err), "name a .vmdk, an .ova, or the folder of an OVF package")
	}
	in = &input{}
	defer func() {
		if err != nil {
			err = errors.Join(err, in.Close())
		}
	}()
	dir, name := filepath.Split(path)
	if info.IsDir() {
		dir, name = path, ""
	} else if !info.Mode().IsRegular() {
		return in, problem.New(problem.Conflict, "", errors.New("it is neither a file nor a folder"), "name a .vmdk, an .ova, or the folder of an OVF package")
	}
	if dir == "" {
		dir = "."
	}
	if in.root, err = os.OpenRoot(dir); err != nil {
		return in, plain(err)
	}
	switch {
	case info.IsDir():
		if name, err = in.findDescriptor(); err != nil {
			return in, err
		}
		return in, in.readPackage(name)
	case strings.EqualFold(filepath.Ext(name), ".ovf"):
		return in, in.readPackage(name)
	}
	f, err := in.root.Open(name)
	if err != nil {
		return in, plain(err)
	}
	in.keep(f)
	begin := make([]byte, ovf.HeaderSize)
	if n, err := f.ReadAt(begin, 0); err == nil && n == len(begin) && bytes.Equal(begin[257:262], []byte("ustar")) {
		in.archive = f
		return in, in.readArchive()
	}
	in.disks = []entry{{name: name, size: info.Size()}}
	return in, nil
}

// keep has a file closed with the input.
func (in *input) keep(c io.Closer) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.opened = append(in.opened, c)
}

// Close closes all files; what still reads them fails then. It may be called
// again.
func (in *input) Close() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	var errs []error
	for _, c := range in.opened {
		errs = append(errs, c.Close())
	}
	in.opened = nil
	if in.root != nil {
		errs = append(errs, in.root.Close())
	}
	return errors.Join(errs...)
}

func (in *input) findDescriptor() (string, error) {
	d, err := in.root.Open(".")
	if err != nil {
		return "", plain(err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return "", plain(err)
	}
	found := ""
	for _, n := range names {
		if !strings.EqualFold(filepath.Ext(n), ".ovf") {
			continue
		}
		if found != "" {
			return "", problem.New(problem.Conflict, "", fmt.Errorf("the folder has several descriptors, %s and %s", found, n), "name the descriptor instead of the folder")
		}
		found = n
	}
	if found == "" {
		return "", problem.New(problem.NotFound, "", errors.New("there is no .ovf in the folder"), "name a .vmdk, an .ova, or the folder of an OVF package")
	}
	return found, nil
}

// readArchive reads the table of an OVA.
func (in *input) readArchive() error {
	info, err := in.archive.Stat()
	if err != nil {
		return plain(err)
	}
	section := io.NewSectionReader(in.archive, 0, info.Size())
	in.members = map[string]entry{}
	descriptor := ""
	for r := tar.NewReader(section); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the archive's table: %w", err)
		}
		if h.Typeflag != tar.TypeReg || strings.ContainsAny(h.Name, "/\\") {
			continue // an OVA has plain files only; others are not looked at
		}
		offset, err := section.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if h.Size > info.Size()-offset {
			return fmt.Errorf("the archive ends within %q: it has %d bytes from byte %d on, want %d", h.Name, info.Size()-offset, offset, h.Size)
		}
		if _, twice := in.members[h.Name]; twice || len(in.members) == maxMembers {
			return fmt.Errorf("the archive holds %q twice, or more than %d files", h.Name, maxMembers)
		}
		in.members[h.Name] = entry{h.Name, offset, h.Size}
		if strings.EqualFold(filepath.Ext(h.Name), ".ovf") && descriptor == "" {
			descriptor = h.Name
		}
	}
	if descriptor == "" {
		return problem.New(problem.Conflict, "", errors.New("the archive holds no .ovf"), "it is no OVA: unpack it and convert the disks")
	}
	return in.readPackage(descriptor)
}

// readPackage reads the descriptor and the manifest of an OVF package.
func (in *input) readPackage(descriptor string) error {
	in.packaged = true
	text, err := in.readAll(descriptor, ovf.MaxDescriptor)
	if err != nil {
		return err
	}
	d, err := ovf.ParseDescriptor(text)
	if err != nil {
		return fmt.Errorf("%s: %w", descriptor, err)
	}
	manifest := strings.TrimSuffix(descriptor, filepath.Ext(descriptor)) + ".mf"
	mf, err := in.readAll(manifest, ovf.MaxManifest)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		in.warnings = append(in.warnings, "there is no manifest: whether the disks are as they were exported could not be checked")
	case err != nil:
		return err
	default:
		entries, err := ovf.ParseManifest(bytes.NewReader(mf))
		if err != nil {
			return fmt.Errorf("%s: %w", manifest, err)
		}
		in.manifest = map[string]ovf.Entry{}
		for _, e := range entries {
			in.manifest[e.Name] = e
		}
		if e, ok := in.manifest[descriptor]; ok {
			h := hasher(e.Algorithm)
			h.Write(text)
			if err := agrees(e, h); err != nil {
				return fmt.Errorf("%s: %w", descriptor, err)
			}
		}
	}
	files := map[string]string{}
	for _, f := range d.Files {
		files[f.ID] = f.Name()
	}
	for _, disk := range d.Disks {
		if disk.FileRef == "" {
			in.warnings = append(in.warnings, fmt.Sprintf("disk %q has no file: it is an empty one of %d bytes", disk.ID, disk.Capacity))
			continue
		}
		name, ok := files[disk.FileRef]
		if !ok || name == "" || strings.ContainsAny(name, "/\\\x00") || name == "." || name == ".." {
			return fmt.Errorf("%s: disk %q refers to the file %q, which is no plain file of the package", descriptor, disk.ID, name)
		}
		e := entry{name: name}
		if in.members != nil {
			if e, ok = in.members[name]; !ok {
				return fmt.Errorf("the archive does not hold %q, to which %s refers", name, descriptor)
			}
		} else if info, err := in.root.Stat(name); err == nil {
			e.size = info.Size()
		} else {
			return problem.New(problem.NotFound, "", fmt.Errorf("%s refers to %q: %w", descriptor, name, plain(err)),
				"an export in qcow2 or raw has images already; convert what was exported as ovf, ova or with -keep-vmdk")
		}
		in.disks = append(in.disks, e)
	}
	if len(in.disks) == 0 {
		return problem.New(problem.Conflict, "", fmt.Errorf("%s names no disks", descriptor), "there is nothing to convert: the VM has no disks, or they were left out of its export")
	}
	return nil
}

// file opens a file of the input, which is closed with it.
func (in *input) file(name string) (io.ReaderAt, int64, error) {
	if in.members != nil {
		e, ok := in.members[name]
		if !ok {
			return nil, 0, fmt.Errorf("the archive does not hold %q: %w", name, fs.ErrNotExist)
		}
		return io.NewSectionReader(in.archive, e.offset, e.size), e.size, nil
	}
	f, err := in.root.Open(name)
	if err != nil {
		return nil, 0, fmt.Errorf("open %q: %w", name, plain(err))
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%q is not a regular file", name)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	in.keep(f)
	return f, info.Size(), nil
}

// readAll reads a small file of the input.
func (in *input) readAll(name string, most int64) ([]byte, error) {
	r, size, err := in.file(name)
	if err != nil {
		return nil, err
	}
	if size > most {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are allowed", name, size, most)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, size), data); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}

// source is one disk being read. It is an image.Decoder that counts.
type source struct {
	image.Decoder
	info   vmdk.Info
	read   int64 // bytes of the extents
	verify func() (bool, error)
}

// Next is image.Decoder's.
func (s *source) Next() (image.Extent, error) {
	e, err := s.Decoder.Next()
	s.read += int64(len(e.Data))
	return e, err
}

// disk opens one of the input's disks. Verify, once all of it has been read,
// compares it with the manifest, if that lists it.
func (in *input) disk(ctx context.Context, e entry) (*source, error) {
	r, size, err := in.file(e.name)
	if err != nil {
		return nil, err
	}
	s := &source{verify: func() (bool, error) { return false, nil }}
	if s.Decoder, s.info, err = vmdk.OpenDisk(r, size, in.file); err != nil {
		return nil, err
	}
	listed, ok := in.manifest[e.name]
	if !ok {
		return s, nil
	}
	h := hasher(listed.Algorithm)
	s.verify = func() (bool, error) { return true, agrees(listed, h) }
	if s.info.Kind == vmdk.KindStream {
		// A stream is read from one end to the other: it is hashed as it passes.
		s.Decoder = vmdk.NewDecoder(io.TeeReader(io.NewSectionReader(r, 0, size), h))
		return s, nil
	}
	return s, hashAll(ctx, h, io.NewSectionReader(r, 0, size))
}

func hashAll(ctx context.Context, h hash.Hash, r io.Reader) error {
	buf := make([]byte, 256<<10)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := r.Read(buf)
		h.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func hasher(a ovf.Algorithm) hash.Hash {
	switch a {
	case ovf.SHA1:
		return sha1.New() //nolint:gosec // see the import
	case ovf.SHA512:
		return sha512.New()
	}
	return sha256.New()
}

func agrees(e ovf.Entry, h hash.Hash) error {
	if got := hex.EncodeToString(h.Sum(nil)); got != e.Digest {
		return fmt.Errorf("its %s is %s, the manifest says %s: it is not what was exported", e.Algorithm, got, e.Digest)
	}
	return nil
}

// plain takes the operation out of an error that names a path: the messages
// here name it already.
func plain(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
