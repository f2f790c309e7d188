package lab

import (
	"slices"
	"sync"
	"time"
)

// Faults says how a VM's exports misbehave. The zero value is a good host.
//
// Numbers of times count per file, from SetFaults on, over all leases; 0 times
// is every time. Places in a stream are in bytes, and count when greater than
// 0. A disk's number is its place in the lease, from 1; files that are no disk
// have number 0.
type Faults struct {
	// Disks are the numbers of the files that the faults of streams hit; empty
	// is all files.
	Disks []int

	// CutAfter closes the TCP connection after so many bytes of a body.
	CutAfter int64
	CutTimes int
	// Unavailable is how many GETs are answered 503, with the header Retry-After
	// as given (seconds or an HTTP date) unless it is empty.
	Unavailable int
	RetryAfter  string
	// NotFound and Forbidden are how many GETs are answered 404 and 403.
	NotFound, Forbidden int
	// BytesPerSecond caps each stream, in place of Options.BytesPerSecond.
	BytesPerSecond int64
	// StallAfter stops sending after so many bytes of a body and keeps the
	// connection open. Other Faults set for the VM release it.
	StallAfter int64
	StallTimes int
	// Ranged honours Range with 206. Otherwise a range is ignored, and the
	// answer is 200 from byte 0.
	Ranged bool
	// WrongContentRange makes a 206 name a range that begins at byte 0, while
	// the body begins where it was asked to. WrongRangeBody makes the body
	// begin at byte 0, while the header names what was asked for.
	WrongContentRange, WrongRangeBody bool
	// ShortClean ends a body after so many bytes as if it were whole.
	ShortClean      int64
	ShortCleanTimes int
	// FlipByteAt sends a flipped bit at that place of the stream. The manifest
	// has the hash of the right bytes.
	FlipByteAt int64
	FlipTimes  int
	// EmptyDisk is the number of a disk that the first lease opened from now on
	// answers with an empty 200. Other leases serve it.
	EmptyDisk int
	// Recompress makes every lease serve other bytes for the same content.
	Recompress bool

	// NoManifest makes manifests empty, NoManifestHash leaves out the hashes,
	// WrongManifestHash lies.
	NoManifest, NoManifestHash, WrongManifestHash bool
	// SHA256Manifest puts SHA-256 into manifests without being asked.
	// NoSHA256 refuses HttpNfcLeaseSetManifestChecksumType, as old hosts do.
	SHA256Manifest, NoSHA256 bool

	// LeaseExpiresAfter kills leases so long after they became ready, however
	// often they are renewed; LeaseExpireTimes is how many of them.
	LeaseExpiresAfter time.Duration
	LeaseExpireTimes  int
	// LeaseFails makes leases end in state error instead of becoming ready.
	LeaseFails bool
	// Thumbprint is what leases say of the host's certificate: "" the truth,
	// "missing" nothing, "wrong" another one.
	Thumbprint string
	// StarHost makes the host in device URLs "*".
	StarHost bool
	// TargetID replaces the target id of a file, given its number and the right
	// id.
	TargetID func(number int, id string) string

	// NoPermission makes exports fault with NoPermission, VApp.Export.
	NoPermission bool
	// TaskInProgress is how many exports fault with TaskInProgress.
	TaskInProgress int
}

// faultState is one Faults with its counts. Its methods are safe for
// concurrent use.
type faultState struct {
	Faults
	replaced chan struct{} // closed when other faults are set

	mu     sync.Mutex
	counts map[count]int
}

type count struct {
	what   string
	number int
}

func newFaultState(f Faults) *faultState {
	return &faultState{Faults: f, replaced: make(chan struct{}), counts: map[count]int{}}
}

// hits reports whether the faults of streams hit a file.
func (f *faultState) hits(number int) bool {
	return len(f.Disks) == 0 || slices.Contains(f.Disks, number)
}

// left reports whether a fault that happens times times (0 always) may happen
// again to a file.
func (f *faultState) left(what string, number, times int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return times <= 0 || f.counts[count{what, number}] < times
}

// take counts an occurrence; it reports false when there are none left.
func (f *faultState) take(what string, number, times int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := count{what, number}
	if times > 0 && f.counts[key] >= times {
		return false
	}
	f.counts[key]++
	return true
}

// takeOf is take for a fault whose field is its number of times, where 0 is
// never.
func (f *faultState) takeOf(what string, number, times int) bool {
	return times > 0 && f.take(what, number, times)
}
