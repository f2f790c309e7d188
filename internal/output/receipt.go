package output

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// Role says what a file of an export is.
type Role string

// The roles.
const (
	RoleDisk       Role = "disk"
	RoleNVRAM      Role = "nvram"
	RoleMedia      Role = "media"
	RoleOther      Role = "other"
	RoleDescriptor Role = "descriptor"
	RoleManifest   Role = "manifest"
	RoleStream     Role = "stream"  // a disk as the host sent it, kept beside its image
	RoleDomain     Role = "domain"  // a libvirt domain
	RoleArchive    Role = "archive" // an OVA
)

// Proof says how the bytes of a file were shown to be the ones on the host.
type Proof string

// The proofs, strongest first.
const (
	// ProofHost means that size and hash agree with the lease's manifest.
	ProofHost Proof = "host-manifest"
	// ProofGrains means that the host gave no hash; every grain inflated to
	// its size and agreed with its own checksum, and the structure is whole.
	ProofGrains Proof = "grain-checksums"
	// ProofNone means that nothing but the length could be checked.
	ProofNone Proof = "none"
	// ProofLocal marks files made here rather than fetched.
	ProofLocal Proof = "made-here"
)

// VM identifies the exported machine.
type VM struct {
	Name         string `json:"name"`
	Path         string `json:"path"`
	MoRef        string `json:"moref"`
	InstanceUUID string `json:"instance_uuid,omitempty"`
	BIOSUUID     string `json:"bios_uuid,omitempty"`
	// Server is the vCenter's or ESXi host's own instance UUID, or its name
	// where it has none.
	Server string `json:"server"`
}

// Same reports whether both are the same machine on the same server.
func (v VM) Same(o VM) bool {
	return v.Server == o.Server && v.MoRef == o.MoRef && v.InstanceUUID == o.InstanceUUID
}

// Hardware is what the machine looked like at the export.
type Hardware struct {
	CPUs            int      `json:"cpus"`
	CoresPerSocket  int      `json:"cores_per_socket,omitempty"`
	MemoryMB        int      `json:"memory_mb"`
	Firmware        string   `json:"firmware,omitempty"`
	SecureBoot      bool     `json:"secure_boot,omitempty"`
	GuestID         string   `json:"guest_id,omitempty"`
	GuestOS         string   `json:"guest_os,omitempty"`
	HardwareVersion string   `json:"hardware_version,omitempty"`
	Disks           []Disk   `json:"disks,omitempty"`
	NICs            []NIC    `json:"nics,omitempty"`
	Removed         []string `json:"removed_devices,omitempty"` // taken out of the VM because it was asked for
}

// Disk is one disk of the machine. Capacity is in bytes.
type Disk struct {
	Label      string `json:"label"`
	Controller string `json:"controller,omitempty"`
	Capacity   int64  `json:"capacity"`
}

// NIC is one network card of the machine.
type NIC struct {
	Label   string `json:"label"`
	Type    string `json:"type,omitempty"`
	MAC     string `json:"mac,omitempty"`
	Network string `json:"network,omitempty"`
}

// File is one file of an export. Sizes are bytes, hashes lower-case hex.
type File struct {
	Name          string `json:"name"`
	Role          Role   `json:"role"`
	Size          int64  `json:"size"`
	SHA256        string `json:"sha256,omitempty"`
	DataSHA256    string `json:"sha256_data,omitempty"` // in its place: see Sums.Data
	SHA1          string `json:"sha1,omitempty"`
	Proof         Proof  `json:"proof"`
	LeaseKey      string `json:"lease_key,omitempty"`
	Capacity      int64  `json:"capacity,omitempty"`
	PopulatedSize int64  `json:"populated_size,omitempty"`
	// Stream is what the host sent, for an image that was made of it.
	Stream *Stream `json:"stream,omitempty"`
	// Archive is the file that holds this one, at Offset; empty for a file of
	// the folder itself.
	Archive string `json:"archive,omitempty"`
	Offset  int64  `json:"offset,omitempty"`
}

// Stream is a disk as the host sent it: a stream-optimized VMDK. SHA1 is empty
// where it was not needed.
type Stream struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	SHA1   string `json:"sha1,omitempty"`
}

// Receipt says what an export left in its folder. A receipt under its own
// name means that the export is whole.
type Receipt struct {
	Tool      string    `json:"tool"`
	Version   string    `json:"version"`
	Format    string    `json:"format"`
	VM        VM        `json:"vm"`
	Hardware  Hardware  `json:"hardware"`
	Snapshot  bool      `json:"from_snapshot,omitempty"`
	Files     []File    `json:"files"`
	Contents  []File    `json:"contents,omitempty"` // of the archive among Files
	Verified  bool      `json:"verified"`           // every disk has ProofHost
	Warnings  []string  `json:"warnings,omitempty"`
	Notes     []string  `json:"notes,omitempty"` // what the libvirt domain could not carry over
	Started   time.Time `json:"started_at"`
	Completed time.Time `json:"completed_at"`
}

// Size is the sum of the files' sizes in bytes.
func (r *Receipt) Size() int64 {
	var n int64
	for _, f := range r.Files {
		n += f.Size
	}
	return n
}

// record is the journal: the receipt as far as it has come.
type record struct {
	// State identifies the content of the VM's disks; what an earlier run
	// left is of use only while it is the same.
	State string `json:"state"`
	// Partials are the files this export has begun.
	Partials []string `json:"partials"`
	// Replaces are files of an earlier export that may be written over.
	Replaces []string `json:"replaces,omitempty"`
	// Removed are devices that a run took out of the VM because it was asked
	// to. They outlive the run that did it, for the receipt.
	Removed []string  `json:"removed_devices,omitempty"`
	Files   []File    `json:"files"`
	VM      VM        `json:"vm"`
	Started time.Time `json:"started_at"`
}

// Journal keeps what an export has finished so that a later run can go on.
// Its methods are safe for concurrent use.
type Journal struct {
	folder *Folder
	mu     sync.Mutex
	rec    record
}

// Examine refuses a folder that Begin would refuse, and changes nothing. It is
// for the time before anything is done to the VM.
func (f *Folder) Examine(vm VM, overwrite bool) error {
	_, _, err := f.examine(vm, overwrite)
	return err
}

func (f *Folder) examine(vm VM, overwrite bool) (whole *Receipt, earlier *record, err error) {
	what := "export into " + f.dir
	var receipt Receipt
	found, err := f.readJSON(ReceiptName, &receipt)
	if err == nil && found {
		err = checkFiles(receipt.Files)
	}
	if err != nil {
		return nil, nil, problem.New(problem.Conflict, what, err, "move the damaged receipt away, or choose another folder")
	}
	if found {
		if !overwrite {
			return nil, nil, problem.New(problem.Conflict, what,
				fmt.Errorf("it already holds the export of %q of %s", receipt.VM.Path, receipt.Completed.Format(time.RFC3339)),
				"check that one with 'hyper2kvm verify', choose another folder, or replace it (-overwrite; overwrite in a job file)")
		}
		whole = &receipt
	}
	var rec record
	found, err = f.readJSON(journalName, &rec)
	if err == nil && found {
		err = errors.Join(checkNames(slices.Concat(rec.Replaces, rec.Partials)), checkFiles(rec.Files))
	}
	if err != nil {
		return nil, nil, problem.New(problem.Conflict, what, err, "move the damaged journal away, or choose another folder")
	}
	if found {
		if !rec.VM.Same(vm) && !overwrite {
			return nil, nil, problem.New(problem.Conflict, what,
				fmt.Errorf("it holds an unfinished export of another VM, %q", rec.VM.Path),
				"choose another folder, or replace it (-overwrite; overwrite in a job file)")
		}
		earlier = &rec
	}
	return whole, earlier, nil
}

// Begin reads what the folder holds and starts or continues the export of vm.
// State identifies the content of its disks: files and partial files of an
// earlier run are kept only under the same non-empty state. A folder that
// holds a whole export, or another VM's unfinished one, is problem.Conflict
// unless overwrite is set; then its files, and only those, may be replaced.
//
// Removed are the devices that this run took out of the VM; those of earlier
// runs are remembered with them.
func (f *Folder) Begin(vm VM, state string, removed []string, overwrite bool) (*Journal, error) {
	whole, earlier, err := f.examine(vm, overwrite)
	if err != nil {
		return nil, err
	}
	j := &Journal{folder: f, rec: record{State: state, VM: vm, Removed: removed, Started: time.Now().UTC()}}
	if whole != nil {
		j.rec.Replaces = fileNames(whole.Files)
	}
	if earlier == nil {
		return j, nil
	}
	j.rec.Replaces = append(j.rec.Replaces, earlier.Replaces...)
	same := earlier.VM.Same(vm)
	if same {
		j.rec.Removed = append(slices.Clone(earlier.Removed), removed...)
	}
	if same && state != "" && earlier.State == state && whole == nil {
		j.rec.Files, j.rec.Partials, j.rec.Started = earlier.Files, earlier.Partials, earlier.Started
		if err := j.reopenArchives(); err != nil {
			return nil, problem.New(problem.Failed, "export into "+f.dir, err, "")
		}
		j.dropLost()
		return j, nil
	}
	j.rec.Replaces = append(j.rec.Replaces, fileNames(earlier.Files)...)
	for _, name := range earlier.Partials {
		if err := f.remove(name + PartialSuffix); err != nil {
			return nil, problem.New(problem.Failed, "export into "+f.dir, err, "")
		}
	}
	return j, nil
}

// checkNames refuses names that are not plain file names: a record might have
// been tampered with, and what it names may be removed.
func checkNames(names []string) error {
	for _, n := range names {
		if n == "" || n == "." || n == ".." || strings.ContainsAny(n, "/\x00") {
			return fmt.Errorf("its record names %q, which is no file of this folder", n)
		}
	}
	return nil
}

// fileNames are the names of files in the folder itself.
func fileNames(files []File) []string {
	var names []string
	for _, f := range files {
		if f.Archive == "" {
			names = append(names, f.Name)
		}
	}
	return names
}

// checkFiles is checkNames for all that a record says of files.
func checkFiles(files []File) error {
	var names []string
	for _, f := range files {
		names = append(names, f.Name)
		if f.Archive != "" {
			names = append(names, f.Archive)
		}
		if f.Offset < 0 || f.Size < 0 || f.Offset > math.MaxInt64-f.Size {
			return fmt.Errorf("its record says %d bytes at %d of %q", f.Size, f.Offset, f.Name)
		}
	}
	return checkNames(names)
}

// reopenArchives makes archives that were given their name just before the
// earlier run ended, without a receipt, partial files again.
func (j *Journal) reopenArchives() error {
	for _, file := range j.rec.Files {
		if file.Archive == "" || !slices.Contains(j.rec.Partials, file.Archive) {
			continue
		}
		if there, err := j.folder.exists(file.Archive + PartialSuffix); err != nil || there {
			continue // a file that cannot be looked at is lost
		}
		if err := j.folder.root.Rename(file.Archive, file.Archive+PartialSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("take up %s again: %w", j.folder.Path(file.Archive), plain(err))
		}
	}
	return nil
}

// dropLost forgets finished files that are gone or have another size by now.
func (j *Journal) dropLost() {
	j.rec.Files = slices.DeleteFunc(j.rec.Files, func(file File) bool {
		if file.Archive != "" {
			info, err := j.folder.root.Lstat(file.Archive + PartialSuffix)
			return err != nil || !info.Mode().IsRegular() || info.Size() < file.Offset+file.Size
		}
		info, err := j.folder.root.Lstat(file.Name)
		lost := err != nil || !info.Mode().IsRegular() || info.Size() != file.Size
		if lost && err == nil {
			j.rec.Replaces = append(j.rec.Replaces, file.Name)
		}
		return lost
	})
}

// Started is when the export began, in its first run.
func (j *Journal) Started() time.Time { return j.rec.Started }

// Removed are the devices taken out of the VM, by this run and earlier ones.
func (j *Journal) Removed() []string { return j.rec.Removed }

// Finished gives the file of that name if it is whole already.
func (j *Journal) Finished(name string) (File, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, f := range j.rec.Files {
		if f.Name == name {
			return f, true
		}
	}
	return File{}, false
}

// Claim announces the files that will be written. A file that is there
// already and that this tool is not known to have written is
// problem.Conflict: nothing of somebody else's is ever replaced.
func (j *Journal) Claim(names []string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, name := range names {
		for _, n := range []string{name, name + PartialSuffix} {
			there, err := j.folder.exists(n)
			if err != nil {
				return fmt.Errorf("look for %s: %w", j.folder.Path(n), plain(err))
			}
			ours := slices.Contains(j.rec.Replaces, n) || slices.Contains(fileNames(j.rec.Files), n) ||
				slices.Contains(j.rec.Partials, strings.TrimSuffix(n, PartialSuffix))
			if there && !ours {
				return problem.New(problem.Conflict, "export into "+j.folder.dir,
					fmt.Errorf("%s is there and was not written by this tool", n), "move it away or choose another folder")
			}
		}
		if !slices.Contains(j.rec.Partials, name) {
			j.rec.Partials = append(j.rec.Partials, name)
		}
	}
	if err := j.save(); err != nil {
		return err
	}
	// From here on the journal stands for the folder: an older receipt would
	// call a mixture of two exports whole.
	return j.folder.remove(ReceiptName)
}

// Finish records that files are whole.
func (j *Journal) Finish(files ...File) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, file := range files {
		j.forget(file.Name)
		j.rec.Files = append(j.rec.Files, file)
	}
	return j.save()
}

// Forget takes back what Finish recorded of files.
func (j *Journal) Forget(names ...string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, name := range names {
		j.forget(name)
	}
	return j.save()
}

func (j *Journal) forget(name string) {
	j.rec.Files = slices.DeleteFunc(j.rec.Files, func(f File) bool { return f.Name == name })
}

// Complete writes the receipt, which ends the export: what the new files did
// not replace of an older export is removed, then the journal becomes the
// receipt.
func (j *Journal) Complete(r Receipt) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, name := range j.rec.Replaces {
		if !slices.Contains(fileNames(r.Files), name) {
			if err := j.folder.remove(name); err != nil {
				return err
			}
		}
	}
	data, err := marshal(r)
	if err != nil {
		return err
	}
	// The names of all files are durable before the receipt vouches for them.
	if err := j.folder.syncDir(); err != nil {
		return err
	}
	if err := j.folder.putVia(journalName+".new", ReceiptName, data); err != nil {
		return err
	}
	if err := j.folder.syncDir(); err != nil {
		return err
	}
	return j.folder.remove(journalName)
}

// Abandon ends a run that did not complete. What is finished or begun stays
// for the next run; kept says whether there is anything. Without it the
// folder is left as it was found.
func (j *Journal) Abandon() (kept bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	kept = len(j.rec.Files) > 0 || len(j.rec.Replaces) > 0 || len(j.rec.Removed) > 0
	for _, name := range j.rec.Partials {
		info, err := j.folder.root.Lstat(name + PartialSuffix)
		if err != nil {
			continue
		}
		if info.Size() > 0 {
			kept = true
		} else if err := j.folder.remove(name + PartialSuffix); err != nil {
			return true, err
		}
	}
	if kept {
		return true, nil
	}
	return false, j.folder.remove(journalName)
}

func (j *Journal) save() error {
	data, err := marshal(j.rec)
	if err != nil {
		return err
	}
	return j.folder.putVia(journalName+".new", journalName, data)
}

func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	return b.Bytes(), nil
}

// putVia writes data to the file via, syncs it and renames it to name.
func (f *Folder) putVia(via, name string, data []byte) error {
	file, err := f.root.OpenFile(via, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, fileMode)
	if err != nil {
		return fmt.Errorf("write %s: %w", f.Path(via), plain(err))
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = f.root.Rename(via, name)
	}
	if err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return &SpaceError{Path: f.Path(name), Err: plain(err)}
		}
		return fmt.Errorf("write %s: %w", f.Path(name), plain(err))
	}
	return nil
}

// readJSON reads a record; false means that there is none.
func (f *Folder) readJSON(name string, into any) (bool, error) {
	file, err := f.root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", f.Path(name), plain(err))
	}
	defer file.Close()
	if err := decodeRecord(file, into); err != nil {
		return true, fmt.Errorf("read %s: %w", f.Path(name), err)
	}
	return true, nil
}

func decodeRecord(r io.Reader, into any) error {
	data, err := io.ReadAll(io.LimitReader(r, maxRecord+1))
	if err != nil {
		return plain(err)
	}
	if len(data) > maxRecord {
		return fmt.Errorf("it is larger than %d bytes", maxRecord)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("it is damaged: %w", err)
	}
	return nil
}
