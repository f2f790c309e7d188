package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/hyper2kvm/hyper2kvm/internal/image/vmdk"
)

const (
	closeTimeout  = 10 * time.Second
	closePoll     = 10 * time.Millisecond
	headerTimeout = 30 * time.Second
)

// Lab is a running vCenter with an ESXi host. Its methods are safe for
// concurrent use.
type Lab struct {
	opts         Options
	model        *simulator.Model
	pki          *pki
	dir          string // for streams and the CA file, removed at Close
	datastoreDir string
	streams      *streams
	vcenter      *server
	host         *server

	ctx     context.Context //nolint:containedctx // the lab's life: leases and encodings end with it
	cancel  context.CancelFunc
	running sync.WaitGroup // lease openings
	closed  atomic.Bool
	once    sync.Once
	result  error

	mu         sync.Mutex
	vms        map[types.ManagedObjectReference]*vm
	leases     []*lease          // in the order they were opened
	tickets    map[string]*lease // by the secret in their URLs
	actions    []string
	requests   []*RequestRecord
	failures   []*soapFailure
	collectors map[*simulator.PropertyCollector]struct{} // that had a client waiting
}

// vm is what the lab knows of a VM besides the simulator.
type vm struct {
	ref   types.ManagedObjectReference
	path  string // escaped
	disks map[int32]*disk
	order []int32 // keys of the disks
	nvram []byte  // nil without

	// Guarded by Lab.mu.
	faults *faultState
	opened int // leases
}

// disk is a disk with its content.
type disk struct{ content *content }

// level is the compression that the disk's streams use: a host does not make
// incompressible data smaller either, and storing it is fast.
func (d *disk) level() int {
	if d.content.pattern == PatternRandom {
		return 0
	}
	return 1
}

// starting is held by Start: the simulator writes package variables when a
// model is made.
var starting sync.Mutex

// Start starts a lab. The caller must Close it.
func Start(opts Options) (*Lab, error) {
	starting.Lock()
	defer starting.Unlock()
	opts.setDefaults()
	l := &Lab{
		opts:       opts,
		vms:        map[types.ManagedObjectReference]*vm{},
		tickets:    map[string]*lease{},
		collectors: map[*simulator.PropertyCollector]struct{}{},
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	if err := l.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start lab: %w", err), l.Close())
	}
	return l, nil
}

func (l *Lab) start() error {
	var err error
	if l.dir, err = os.MkdirTemp("", "hyper2kvm-lab-"); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	l.streams = &streams{dir: l.dir, all: map[streamKey]*pending{}}
	if l.pki, err = newPKI(l.opts.Addr, l.opts.HostAddr); err != nil {
		return err
	}
	if err := os.WriteFile(l.caFile(), l.pki.caPEM, 0o600); err != nil {
		return fmt.Errorf("write certificate: %w", err)
	}
	l.model = simulator.VPX()
	l.model.Machine = 0
	l.model.Autostart = false
	if err := l.model.Create(); err != nil {
		return fmt.Errorf("make simulator: %w", err)
	}
	if err := l.build(l.ctx, l.opts.vms()); err != nil {
		return err
	}
	registry := l.model.Map()
	registry.Put(&exporter{lab: l, OvfManager: mo.OvfManager{Self: exporterRef}})
	registry.Handler = l.intercept

	// The simulator's own server only sets up its routes; it is not used, for
	// its connections cannot be ended.
	l.model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword(l.opts.Username, l.opts.Password)}
	l.model.Service.NewServer().Close()
	files := http.HandlerFunc(l.serveFile)
	mux := http.NewServeMux()
	mux.Handle("/", l.model.Service.ServeMux)
	mux.Handle(filePrefix, files) // for clients that take host and port for a "*" from the URL they know
	if l.vcenter, err = serve(l.opts.Addr, l.pki.vcenter, mux); err != nil {
		return err
	}
	l.host, err = serve(l.opts.HostAddr, l.pki.host, files)
	return err
}

// Close ends every lease and connection, and removes what the lab has on
// disk.
func (l *Lab) Close() error {
	l.once.Do(func() { l.result = l.close() })
	return l.result
}

func (l *Lab) close() error {
	l.closed.Store(true)
	l.cancel()
	var errs []error
	if l.vcenter != nil {
		errs = append(errs, l.vcenter.close(l.endWaits))
	}
	if l.host != nil {
		errs = append(errs, l.host.close(nil))
	}
	l.running.Wait()
	l.mu.Lock()
	leases := slices.Clone(l.leases)
	l.mu.Unlock()
	for _, lease := range leases {
		lease.timer.Stop()
	}
	if l.streams != nil {
		errs = append(errs, l.streams.close())
	}
	if l.model != nil && l.model.Service != nil {
		l.model.Remove()
	}
	if l.dir != "" {
		errs = append(errs, os.RemoveAll(l.dir))
	}
	return errors.Join(errs...)
}

// endWaits ends the calls that wait for property changes, which do not notice
// that their client has gone.
func (l *Lab) endWaits() {
	l.mu.Lock()
	waiting := slices.Collect(maps.Keys(l.collectors))
	l.mu.Unlock()
	for _, pc := range waiting {
		pc.CancelWaitForUpdates(&types.CancelWaitForUpdates{This: pc.Self})
	}
}

// server is a TLS listener whose connections can be ended.
type server struct {
	http     *http.Server
	addr     string
	served   chan error
	inFlight atomic.Int64
}

// serve begins to listen.
func serve(addr string, cert tls.Certificate, handler http.Handler) (*server, error) {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	s := &server{addr: listener.Addr().String(), served: make(chan error, 1)}
	s.http = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.inFlight.Add(1)
			defer s.inFlight.Add(-1)
			handler.ServeHTTP(w, r)
		}),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}},
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ReadHeaderTimeout: headerTimeout,
		ErrorLog:          log.New(discard{}, "", 0), // of handshakes that clients break off
	}
	go func() { s.served <- s.http.ServeTLS(listener, "", "") }()
	return s, nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// close ends the listener and its connections, then waits for the requests in
// flight, calling nudge until they are over.
func (s *server) close(nudge func()) error {
	err := s.http.Close()
	if e := <-s.served; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	end := time.NewTimer(closeTimeout)
	defer end.Stop()
	tick := time.NewTicker(closePoll)
	defer tick.Stop()
	for s.inFlight.Load() > 0 {
		if nudge != nil {
			nudge()
		}
		select {
		case <-tick.C:
		case <-end.C:
			return errors.Join(err, fmt.Errorf("%d requests to %s do not end", s.inFlight.Load(), s.addr))
		}
	}
	return err
}

// simContext makes a context for calls into the simulator. Its locks belong to
// a context, so each chain of calls has its own.
func (l *Lab) simContext() *simulator.Context {
	ctx := *l.model.Service.Context
	return &ctx
}

func (l *Lab) caFile() string { return filepath.Join(l.dir, "vcenter-ca.pem") }

// URL is the address of vCenter's API, without credentials.
func (l *Lab) URL() *url.URL {
	return &url.URL{Scheme: "https", Host: l.vcenter.addr, Path: vim25.Path}
}

// Username is the user that Login takes.
func (l *Lab) Username() string { return l.opts.Username }

// Password is the password that Login takes.
func (l *Lab) Password() string { return l.opts.Password }

// Env is the environment for govc and for this project's binaries. It trusts
// vCenter by its authority; the ESXi host must be trusted by the lease's
// thumbprint.
func (l *Lab) Env() map[string]string {
	return map[string]string{
		"GOVC_URL":          l.URL().String(),
		"GOVC_USERNAME":     l.opts.Username,
		"GOVC_PASSWORD":     l.opts.Password,
		"GOVC_TLS_CA_CERTS": l.caFile(),
	}
}

// CACertPEM is the certificate of the authority that issued vCenter's.
func (l *Lab) CACertPEM() []byte { return slices.Clone(l.pki.caPEM) }

// CAFile is a file with CACertPEM, removed at Close.
func (l *Lab) CAFile() string { return l.caFile() }

// HostAddr is where the ESXi host serves files, host:port.
func (l *Lab) HostAddr() string { return reachable(l.host.addr) }

// Thumbprint is the SHA-1 of vCenter's certificate, as "AA:BB:…".
func (l *Lab) Thumbprint() string { return thumbprint(l.pki.vcenter) }

// HostThumbprint is the SHA-1 of the ESXi host's certificate, as in leases.
func (l *Lab) HostThumbprint() string { return thumbprint(l.pki.host) }

// HostThumbprintSHA256 is the SHA-256 of the ESXi host's certificate.
func (l *Lab) HostThumbprintSHA256() string { return thumbprint256(l.pki.host) }

func (l *Lab) addVM(ref types.ManagedObjectReference, path string) *vm {
	v := &vm{ref: ref, path: path, disks: map[int32]*disk{}, faults: newFaultState(Faults{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.vms[ref] = v
	return v
}

// vmOf gives a VM's record; one that a client created gets it now.
func (l *Lab) vmOf(ref types.ManagedObjectReference) *vm {
	l.mu.Lock()
	v := l.vms[ref]
	l.mu.Unlock()
	if v == nil {
		v = l.addVM(ref, ref.Value)
	}
	return v
}

// find looks a VM up by path, or by name when that is unique. It panics when
// there is no such VM: the test that asks is wrong.
func (l *Lab) find(name string) *vm {
	found := l.called(name)
	if len(found) != 1 {
		panic(fmt.Sprintf("lab: %d VMs are called %q", len(found), name))
	}
	return found[0]
}

// called gives the VMs of that path, name or reference.
func (l *Lab) called(name string) []*vm {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []*vm
	for _, v := range l.vms {
		if v.path == name {
			return []*vm{v}
		}
		last, err := url.PathUnescape(v.path[strings.LastIndex(v.path, "/")+1:])
		if err == nil && last == name || v.ref.Value == name {
			found = append(found, v)
		}
	}
	return found
}

// MoRef gives a VM's managed object reference value, by path or unique name.
func (l *Lab) MoRef(vm string) string { return l.find(vm).ref.Value }

// SetFaults makes a VM's exports misbehave from now on, streams that are
// running included. It replaces what was set for the VM before. The VM is
// named by path, or by name when that is unique; it must exist.
func (l *Lab) SetFaults(vm string, f Faults) {
	v := l.find(vm)
	l.mu.Lock()
	old := v.faults
	v.faults = newFaultState(f)
	l.mu.Unlock()
	close(old.replaced)
}

func (l *Lab) faultsOf(v *vm) *faultState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return v.faults
}

// ExpireSessions ends all sessions: whatever calls next is told
// NotAuthenticated until it logs in again. Leases live on.
func (l *Lab) ExpireSessions() {
	client, err := vim25.NewClient(l.ctx, l.model.Service)
	if err != nil {
		return // the lab is closed
	}
	ref := client.ServiceContent.SessionManager
	var manager mo.SessionManager
	if err := mo.RetrieveProperties(l.ctx, client, client.ServiceContent.PropertyCollector, *ref, &manager); err != nil {
		return
	}
	for _, s := range manager.SessionList {
		// One that has just been logged out is fine.
		_, _ = methods.TerminateSession(l.ctx, client, &types.TerminateSession{This: *ref, SessionId: []string{s.Key}})
	}
}

// Disk is the content of a VM's disk, as its guest sees it. Disks count from 0
// here, in the order of the VM's hardware.
func (l *Lab) Disk(vm string, n int) vmdk.Content {
	return l.diskOf(vm, n).content
}

// Disks is how many disks a VM has.
func (l *Lab) Disks(vm string) int { return len(l.find(vm).order) }

func (l *Lab) diskOf(vm string, n int) *disk {
	v := l.find(vm)
	if n < 0 || n >= len(v.order) {
		panic(fmt.Sprintf("lab: %s has no disk %d", v.path, n))
	}
	return v.disks[v.order[n]]
}

// Stream is a VM's disk as its leases serve it without Recompress.
type Stream struct {
	s *stream
}

// Stream gives a disk's stream, encoding it if no lease has asked for it yet.
// It can be read until Close.
func (l *Lab) Stream(vm string, n int) (*Stream, error) {
	s, err := l.streams.get(l.ctx, l.diskOf(vm, n), 0)
	if err != nil {
		return nil, fmt.Errorf("encode disk %d of %s: %w", n, vm, err)
	}
	return &Stream{s}, nil
}

// ReadAt reads bytes as they are served.
func (s *Stream) ReadAt(p []byte, off int64) (int, error) { return s.s.ReadAt(p, off) }

// Size is the stream's length in bytes.
func (s *Stream) Size() int64 { return s.s.size }

// SHA1 is the stream's SHA-1 in hexadecimal.
func (s *Stream) SHA1() string { return s.s.sha1 }

// SHA256 is the stream's SHA-256 in hexadecimal.
func (s *Stream) SHA256() string { return s.s.sha256 }

// Populated is how many bytes of guest data the stream holds, in whole grains.
func (s *Stream) Populated() int64 { return s.s.populated }

// StreamSHA256 is the SHA-256 of a disk's stream in hexadecimal, or empty when
// the lab is closed.
func (l *Lab) StreamSHA256(vm string, n int) string {
	s, err := l.Stream(vm, n)
	if err != nil {
		return ""
	}
	return s.SHA256()
}

// NVRAM is a VM's NVRAM file, nil when it has none.
func (l *Lab) NVRAM(vm string) []byte { return slices.Clone(l.find(vm).nvram) }

// Actions lists what has been done to VMs, in order: the method's name, a
// space, the VM's path. Calls that were refused because of a lease are not
// among them.
func (l *Lab) Actions() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.actions)
}

// RequestRecord is one request for a file.
type RequestRecord struct {
	VM     string // path; empty when no lease knows the URL
	Lease  string // ID of the lease
	Key    string // of the device
	Disk   int    // place of the disk in the lease, from 1; 0 for files that are no disk
	Range  string // the request's header
	Status int
	Bytes  int64 // of the body, sent so far
}

// Requests lists the requests for files in the order they came.
func (l *Lab) Requests() []RequestRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]RequestRecord, len(l.requests))
	for i, r := range l.requests {
		out[i] = *r
	}
	return out
}
