package vsphere

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const (
	// exportTimeout bounds ExportVm and the wait for the lease to be ready.
	exportTimeout = 5 * time.Minute
	readyTimeout  = 2 * time.Minute
	// defaultLease is the lease timeout of ESXi, for a server that gives none.
	defaultLease = 300 * time.Second
	minInterval  = 200 * time.Millisecond
	maxInterval  = time.Minute
	minRetry     = 50 * time.Millisecond
	maxBeat      = 30 * time.Second
)

// LeaseItem is one file that a lease offers.
type LeaseItem struct {
	Key string // names the device in the manifest and the descriptor
	// TargetID is the file name that the host suggests. It may be empty or
	// the same for two items, and must not be trusted as a path.
	TargetID string
	Kind     ItemKind
	// URL holds the ticket that opens the file: it is a secret.
	URL *url.URL
	// Size is the file's size in bytes, 0 when unknown. It is never known for
	// a disk, which the host makes into a stream on the fly.
	Size int64
	// Capacity is the size in bytes of the disk as the guest sees it, 0 for
	// other files and when the disk could not be told.
	Capacity int64
	Label    string // for people: "Hard disk 1"
}

// Lease is the right to read a VM's files (HttpNfcLease). While it is open the
// VM can be neither powered on nor moved, so it must be closed on every path.
// A goroutine of its own renews it until then. Its methods are safe for
// concurrent use.
type Lease struct {
	api
	ref      types.ManagedObjectReference
	what     string // the operation, for errors
	items    []LeaseItem
	clients  map[string]*http.Client // by item key
	checksum string
	timeout  time.Duration // of the lease on the host
	percent  atomic.Int32
	forget   func() // takes the lease out of its client's list
	renewed  atomic.Pointer[func(error)]

	stop  context.CancelFunc // ends the keepalive
	ended chan struct{}      // closed when the keepalive has ended
	done  chan struct{}

	mu     sync.Mutex
	lost   error
	isDone bool

	closing bool
	closed  chan struct{} // closed when result is there
	result  error
}

// ExportVM opens a lease on the files of a VM that is powered off. Errors are
// *problem.Error; one that matches ErrBusy may go away by itself.
func (c *Client) ExportVM(ctx context.Context, moref string) (*Lease, error) {
	ref := c.vmRef(moref)
	return c.openLease(ctx, "export VM "+moref, []types.ManagedObjectReference{ref},
		func(ctx context.Context) (types.ManagedObjectReference, error) {
			res, err := methods.ExportVm(ctx, c.rt, &types.ExportVm{This: ref})
			if err != nil {
				return ref, err
			}
			return res.Returnval, nil
		})
}

// ExportSnapshot opens a lease on the disks of a VM's snapshot. The VM may be
// running.
func (c *Client) ExportSnapshot(ctx context.Context, vmMoref, snapshotMoRef string) (*Lease, error) {
	snapshot := types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: snapshotMoRef}
	return c.openLease(ctx, fmt.Sprintf("export snapshot %s of VM %s", snapshotMoRef, vmMoref),
		[]types.ManagedObjectReference{snapshot, c.vmRef(vmMoref)},
		func(ctx context.Context) (types.ManagedObjectReference, error) {
			res, err := methods.ExportSnapshot(ctx, c.rt, &types.ExportSnapshot{This: snapshot})
			if err != nil {
				return snapshot, err
			}
			return res.Returnval, nil
		})
}

// openLease calls export and waits until its lease is ready. The hardware is
// that of the first of entities that has any.
func (c *Client) openLease(ctx context.Context, what string, entities []types.ManagedObjectReference,
	export func(context.Context) (types.ManagedObjectReference, error),
) (*Lease, error) {
	var hardware []types.BaseVirtualDevice
	for _, e := range entities {
		props, err := c.properties(ctx, e, "config.hardware.device")
		if isFault[*types.InvalidProperty](err) {
			continue // a server that does not show a snapshot's hardware
		}
		if err != nil {
			return nil, failure(what, err)
		}
		if hardware = get[types.ArrayOfVirtualDevice](props, "config.hardware.device").VirtualDevice; len(hardware) > 0 {
			break
		}
	}
	l, err := handover(ctx, c, what, exportTimeout,
		func(ctx context.Context) (*Lease, error) {
			ref, err := export(ctx)
			if err != nil {
				return nil, err
			}
			l, err := c.readyLease(ctx, ref, what, hardware)
			if err != nil {
				actx, cancel := alive(ctx, closeTimeout)
				defer cancel()
				if aerr := c.abort(actx, ref, err); aerr != nil && !gone(aerr, ref) {
					c.log.Warn("could not abort lease", slog.String("lease", ref.Value), slog.String("error", reason(aerr).Error()))
				}
				return nil, &settledError{err} // or said just now
			}
			return l, nil
		},
		func(ctx context.Context, l *Lease) {
			if err := l.Close(ctx, context.Canceled); err != nil {
				c.log.Warn("could not abort the lease of an export that was cancelled", slog.String("lease", l.ID()),
					slog.String("error", err.Error()))
			}
		})
	if err != nil {
		return nil, failure(what, err)
	}
	return l, nil
}

// readyLease waits for a new lease and starts to keep it.
func (c *Client) readyLease(ctx context.Context, ref types.ManagedObjectReference, what string, hardware []types.BaseVirtualDevice) (*Lease, error) {
	info, err := c.waitReady(ctx, ref)
	if err != nil {
		return nil, err
	}
	ready := time.Now()
	l := &Lease{api: c.api, ref: ref, what: what, timeout: time.Duration(info.LeaseTimeout) * time.Second}
	if l.timeout <= 0 {
		l.timeout = defaultLease
	}
	if err := c.fill(l, info.DeviceUrl, hardware); err != nil {
		return nil, err
	}
	l.checksum = c.askSHA256(ctx, l)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, ErrClosed
	}
	c.leases[l] = struct{}{}
	l.forget = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.leases, l)
	}
	c.mu.Unlock()
	l.start(ctx, ready)
	return l, nil
}

func (a *api) waitReady(ctx context.Context, ref types.ManagedObjectReference) (types.HttpNfcLeaseInfo, error) {
	var info types.HttpNfcLeaseInfo
	wctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	err := a.wait(wctx, ref, []string{"state", "info", "error"}, func(props map[string]any) (bool, error) {
		switch state := get[types.HttpNfcLeaseState](props, "state"); state {
		case types.HttpNfcLeaseStateReady:
			var ok bool
			info, ok = props["info"].(types.HttpNfcLeaseInfo)
			return ok, nil
		case types.HttpNfcLeaseStateInitializing, "":
			return false, nil
		default:
			return false, stateError(state, props)
		}
	})
	if err != nil && wctx.Err() != nil && ctx.Err() == nil {
		err = problem.New(problem.Failed, "open the lease", fmt.Errorf("the host did not make it ready within %v", readyTimeout),
			"look at the ESXi host's tasks, then try again")
	}
	return info, err
}

func stateError(state types.HttpNfcLeaseState, props map[string]any) error {
	if f, ok := props["error"].(types.LocalizedMethodFault); ok {
		return &taskError{&f}
	}
	return fmt.Errorf("the lease is in state %q", state)
}

// fill makes the lease's items out of what the host offers.
func (c *Client) fill(l *Lease, urls []types.HttpNfcLeaseDeviceUrl, hardware []types.BaseVirtualDevice) error {
	if len(urls) == 0 {
		return errors.New("the host offers no files")
	}
	all := disks(hardware)
	l.clients = make(map[string]*http.Client, len(urls))
	transports := map[string]*http.Transport{}
	for i, n := range assign(all, urls) {
		d := urls[i]
		u, err := fileURL(d.Url, c.soap.URL().Host)
		if err != nil {
			return fmt.Errorf("read the URL of device %q: %w", d.Key, err)
		}
		if _, twice := l.clients[d.Key]; twice {
			return fmt.Errorf("the host offers device %q twice", d.Key)
		}
		item := LeaseItem{Key: d.Key, TargetID: d.TargetId, URL: u, Kind: classifyItem(d, n >= 0), Label: d.TargetId}
		if item.Kind == ItemDisk {
			item.Label = fmt.Sprintf("disk %d", i)
			if n >= 0 {
				item.Capacity, item.Label = all[n].Capacity, all[n].Label
			}
		} else {
			item.Size = max(0, d.FileSize)
			if item.Kind == ItemNVRAM {
				item.Label = "NVRAM"
			}
		}
		l.items = append(l.items, item)
		l.clients[d.Key] = c.fileClient(u, pins(d.SslThumbprint, d.SslCertificate), transports)
	}
	return nil
}

// fileURL reads a device URL. A host "*" stands for the one connected to; a
// port in the URL stays, for the host may serve files on another port than its
// API.
func fileURL(raw, connected string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		// The error would quote the URL, and its ticket with it.
		return nil, errors.New("it is not a URL")
	}
	if u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("its scheme is %q", u.Scheme)
	}
	if u.Hostname() == "*" {
		if port := u.Port(); port != "" {
			host := connected
			if h, _, err := net.SplitHostPort(connected); err == nil {
				host = h
			}
			u.Host = net.JoinHostPort(strings.Trim(host, "[]"), port)
		} else {
			u.Host = connected
		}
	}
	if u.Hostname() == "" || u.User != nil {
		return nil, errors.New("it names no host, or credentials")
	}
	return u, nil
}

// fileClient makes the HTTP client for one file. Files of one host share its
// connections.
func (c *Client) fileClient(u *url.URL, pins []string, transports map[string]*http.Transport) *http.Client {
	port := "443"
	if u.Scheme == "http" {
		port = "80"
	}
	addr := hostPort(u.Host, port)
	id := addr + " " + strings.Join(pins, " ")
	t := transports[id]
	if t == nil {
		t = c.trust.transport(addr, pins)
		t.ResponseHeaderTimeout = headerTimeout
		t.ReadBufferSize = nfcReadBuffer
		t.DialContext = dialReadAhead(t.DialContext)
		t.MaxIdleConnsPerHost = 4
		transports[id] = t
	}
	client := &http.Client{Transport: t, CheckRedirect: noRedirect}
	if strings.EqualFold(u.Hostname(), c.soap.URL().Hostname()) {
		// The session's cookie is for nobody else's eyes.
		client.Jar = c.jar
	}
	return client
}

// askSHA256 asks for SHA-256 in the manifest, which hosts before vSphere 7 do
// not know. It must be said before the first byte is read.
func (c *Client) askSHA256(ctx context.Context, l *Lease) string {
	kind := string(types.HttpNfcLeaseManifestEntryChecksumTypeSha256)
	req := types.HttpNfcLeaseSetManifestChecksumType{This: l.ref}
	for _, i := range l.items {
		req.DeviceUrlsToChecksumTypes = append(req.DeviceUrlsToChecksumTypes, types.KeyValue{Key: i.Key, Value: kind})
	}
	if _, err := methods.HttpNfcLeaseSetManifestChecksumType(ctx, c.rt, &req); err != nil {
		c.log.Debug("the host does not do SHA-256 in its manifest", slog.String("lease", l.ref.Value), slog.String("error", reason(err).Error()))
		return ""
	}
	return kind
}

// start begins the keepalive. The lease was last renewed at ready.
func (l *Lease) start(ctx context.Context, ready time.Time) {
	ctx, l.stop = context.WithCancel(context.WithoutCancel(ctx))
	l.ended, l.done, l.closed = make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(l.ended)
		l.keep(ctx, ready)
	}()
}

// keep renews the lease until ctx ends or the lease is lost. An error is
// tried again soon: the host counts only the time since the last call that
// reached it.
func (l *Lease) keep(ctx context.Context, renewed time.Time) {
	interval := min(max(l.timeout/4, minInterval), maxInterval)
	retry := max(interval/8, minRetry)
	for wait := interval; ; {
		if pause(ctx, wait) != nil {
			return
		}
		began := time.Now()
		err := l.beat(ctx, min(maxBeat, max(interval, minInterval)))
		if hear := l.renewed.Load(); hear != nil && ctx.Err() == nil {
			(*hear)(err)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			renewed, wait = began, interval
			continue
		case l.over(err):
			l.lose(err)
			return
		}
		left := l.timeout - time.Since(renewed)
		if left <= 0 {
			l.lose(fmt.Errorf("it could not be renewed for %v: %w", l.timeout, reason(err)))
			return
		}
		l.log.Warn("could not renew lease, trying again", slog.String("lease", l.ref.Value), slog.Duration("left", left),
			slog.String("error", reason(err).Error()))
		wait = min(retry, left)
	}
}

// beat renews the lease and looks at its state: a host that has given a lease
// up may still answer HttpNfcLeaseProgress.
func (l *Lease) beat(ctx context.Context, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	_, err := methods.HttpNfcLeaseProgress(ctx, l.rt, &types.HttpNfcLeaseProgress{This: l.ref, Percent: l.percent.Load()})
	if err != nil {
		return err
	}
	props, err := l.properties(ctx, l.ref, "state", "error")
	if err != nil {
		if gone(err, l.ref) {
			return err
		}
		return nil // it has been renewed; the state can be asked the next time
	}
	switch state := get[types.HttpNfcLeaseState](props, "state"); state {
	case types.HttpNfcLeaseStateError, types.HttpNfcLeaseStateDone:
		return &overError{stateError(state, props)}
	}
	return nil
}

// overError marks a lease that the host itself calls ended.
type overError struct{ err error }

func (e *overError) Error() string { return e.err.Error() }
func (e *overError) Unwrap() error { return e.err }

// over reports whether err means that the lease will not come back.
func (l *Lease) over(err error) bool {
	if _, ok := errors.AsType[*overError](err); ok {
		return true
	}
	return gone(err, l.ref) || isFault[types.BaseInvalidState](err) || isFault[*types.Timedout](err)
}

func (l *Lease) lose(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isDone {
		return
	}
	l.lost = problem.New(problem.Failed, l.what, fmt.Errorf("%w: %w", ErrLeaseLost, reason(why)), "")
	l.isDone = true
	close(l.done)
	l.log.Warn("lease lost", slog.String("lease", l.ref.Value), slog.String("error", reason(why).Error()))
}

// ID is the value of the lease's managed object reference.
func (l *Lease) ID() string { return l.ref.Value }

// Items gives the files in the host's order.
func (l *Lease) Items() []LeaseItem {
	items := make([]LeaseItem, len(l.items))
	for i, item := range l.items {
		u := *item.URL
		item.URL = &u
		items[i] = item
	}
	return items
}

// HTTPClient gives the client to read an item of this lease with. It trusts
// the item's host by authority, known-hosts file or the lease's own word, and
// no other host. It has timeouts for all but the body, whose reader must watch
// for a stream that stalls. An item that is not this lease's has none: nil.
func (l *Lease) HTTPClient(item LeaseItem) *http.Client { return l.clients[item.Key] }

// OnRenew has f called after each renewal of the lease: with nil, or with why
// it failed. F must not wait. Only the last f is called.
func (l *Lease) OnRenew(f func(err error)) { l.renewed.Store(&f) }

// SetPercent says what the host is told with the next keepalive: 0 to 100,
// never less than before.
func (l *Lease) SetPercent(p int) {
	next := int32(min(max(p, 0), 100))
	for {
		old := l.percent.Load()
		if next <= old || l.percent.CompareAndSwap(old, next) {
			return
		}
	}
}

// Manifest asks what the host has sent so far. An item that has not been read
// to its end may be missing.
func (l *Lease) Manifest(ctx context.Context) ([]ManifestEntry, error) {
	res, err := methods.HttpNfcLeaseGetManifest(ctx, l.rt, &types.HttpNfcLeaseGetManifest{This: l.ref})
	if err != nil {
		if l.over(err) {
			l.lose(err)
			return nil, l.Err()
		}
		return nil, failure("read the manifest of lease "+l.ref.Value, err)
	}
	entries := make([]ManifestEntry, len(res.Returnval))
	for i, e := range res.Returnval {
		entries[i] = ManifestEntry{
			Key: e.Key, SHA1: strings.ToLower(e.Sha1),
			Checksum: strings.ToLower(e.Checksum), ChecksumType: strings.ToLower(e.ChecksumType),
			Disk: e.Disk, Size: e.Size, Capacity: e.Capacity, PopulatedSize: e.PopulatedSize,
		}
	}
	return entries, nil
}

// ChecksumType is "sha256" when the host agreed to put SHA-256 into the
// manifest, and empty otherwise.
func (l *Lease) ChecksumType() string { return l.checksum }

// Done is closed when the lease is known to be lost, or has been closed.
func (l *Lease) Done() <-chan struct{} { return l.done }

// Err says why the lease is lost; it matches ErrLeaseLost. It is nil while the
// lease is open and when Close ended it.
func (l *Lease) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// Close gives the lease back: completes it when cause is nil, else aborts it
// and tells the host why. It ends the keepalive, takes at most 10 seconds,
// works although ctx has ended, and may be called again. Completing a lease
// that is lost is an error that matches ErrLeaseLost; aborting one is not.
func (l *Lease) Close(ctx context.Context, cause error) error {
	l.mu.Lock()
	first := !l.closing
	l.closing = true
	l.mu.Unlock()
	if first {
		l.result = l.close(ctx, cause)
		close(l.closed)
	}
	<-l.closed
	return l.result
}

func (l *Lease) close(ctx context.Context, cause error) error {
	l.stop()
	<-l.ended
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	defer func() {
		for _, c := range l.clients {
			c.CloseIdleConnections()
		}
		if l.forget != nil {
			l.forget()
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.isDone {
			l.isDone = true
			close(l.done)
		}
	}()
	if lost := l.Err(); lost != nil && cause == nil {
		// The host may only have lost us; the VM must not stay locked.
		if err := l.abortUntil(ctx, lost); err != nil {
			return errors.Join(lost, err)
		}
		return lost
	}
	if cause != nil {
		return failure("abort lease "+l.ref.Value, l.abortUntil(ctx, cause))
	}
	if err := l.complete(ctx); err != nil {
		if aerr := l.abortUntil(ctx, err); aerr != nil {
			err = errors.Join(err, reason(aerr))
		}
		return failure("complete lease "+l.ref.Value, err)
	}
	return nil
}

func (l *Lease) complete(ctx context.Context) error {
	tried := false
	return l.until(ctx, func() error {
		if !tried {
			_, err := methods.HttpNfcLeaseProgress(ctx, l.rt, &types.HttpNfcLeaseProgress{This: l.ref, Percent: 100})
			if gone(err, l.ref) {
				return fmt.Errorf("%w: %w", ErrLeaseLost, err)
			}
			if err != nil {
				l.log.Debug("could not report the lease's end", slog.String("error", reason(err).Error()))
			}
		}
		_, err := methods.HttpNfcLeaseComplete(ctx, l.rt, &types.HttpNfcLeaseComplete{This: l.ref})
		if tried && gone(err, l.ref) {
			return nil // the call before had been heard
		}
		tried = true
		return err
	})
}

// abortUntil aborts the lease; one that is gone needs no abort.
func (l *Lease) abortUntil(ctx context.Context, cause error) error {
	return l.until(ctx, func() error {
		err := l.abort(ctx, l.ref, cause)
		if err != nil && l.over(err) {
			return nil
		}
		return err
	})
}

// abort tells the host that the export failed, and why.
func (a *api) abort(ctx context.Context, ref types.ManagedObjectReference, cause error) error {
	const longest = 512           // bytes of a message for the host's log
	text := reason(cause).Error() // without URLs, which hold tickets
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "")
	}
	_, err := methods.HttpNfcLeaseAbort(ctx, a.rt, &types.HttpNfcLeaseAbort{This: ref, Fault: &types.LocalizedMethodFault{
		Fault:            &types.SystemError{Reason: text},
		LocalizedMessage: text,
	}})
	return err
}

// until repeats call while it gets no answer.
func (l *Lease) until(ctx context.Context, call func() error) error {
	for wait := readPause; ; wait *= 2 {
		err := call()
		if err == nil || answered(err) || ctx.Err() != nil || errors.Is(err, ErrClosed) || errors.Is(err, ErrLeaseLost) {
			return err
		}
		if pause(ctx, wait) != nil {
			return err
		}
	}
}

// CreateDescriptor asks the server for the OVF envelope of a VM, or of one of
// its snapshots, that names the given files. Call it when the files are there:
// it writes their sizes into the envelope.
func (c *Client) CreateDescriptor(ctx context.Context, moref string, p DescriptorParams) (Descriptor, error) {
	what := "create OVF descriptor of VM " + moref
	if c.content.OvfManager == nil {
		return Descriptor{}, problem.New(problem.Failed, what, errors.New("the server has no OVF manager"), "")
	}
	params := types.OvfCreateDescriptorParams{Name: p.Name}
	if p.IncludeMedia {
		params.IncludeImageFiles = &p.IncludeMedia
	}
	if p.SnapshotMoRef != "" {
		params.Snapshot = &types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: p.SnapshotMoRef}
	}
	for _, f := range p.Files {
		params.OvfFiles = append(params.OvfFiles, types.OvfFile{
			DeviceId: f.Key, Path: f.Path, Size: f.Size, Capacity: f.Capacity, PopulatedSize: f.PopulatedSize,
		})
	}
	res, err := methods.CreateDescriptor(ctx, c.rt, &types.CreateDescriptor{This: *c.content.OvfManager, Obj: c.vmRef(moref), Cdp: params})
	if err != nil {
		return Descriptor{}, failure(what, err)
	}
	r := res.Returnval
	d := Descriptor{XML: []byte(r.OvfDescriptor)}
	for _, f := range r.Warning {
		d.Warnings = append(d.Warnings, (&taskError{&f}).Error())
	}
	if r.OvfDescriptor == "" {
		if len(r.Error) > 0 {
			return Descriptor{}, failure(what, &taskError{&r.Error[0]})
		}
		return Descriptor{}, problem.New(problem.Failed, what, errors.New("the server gave an empty one"), "")
	}
	// A device it does not know is an "error" beside a descriptor that is
	// right for the rest.
	for _, f := range r.Error {
		d.Warnings = append(d.Warnings, (&taskError{&f}).Error())
	}
	return d, nil
}
