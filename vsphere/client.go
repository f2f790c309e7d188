// Package vsphere is all that speaks govmomi: a session with a vCenter or a
// standalone ESXi host, the inventory, what is done to a VM, and the NFC
// leases that give its disks away. It answers plain Go values and
// *problem.Error. It does not read the disks' bytes and writes no files.
package vsphere

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const (
	// keepaliveInterval is well under the 30 minutes after which vCenter ends
	// an idle session.
	keepaliveInterval = 5 * time.Minute
	connectTimeout    = time.Minute
	// closeTimeout bounds the calls that give something back.
	closeTimeout = 10 * time.Second
	userAgent    = "hyper2kvm"
)

// Client is one session with a vCenter or an ESXi host. Its methods are safe
// for concurrent use; all share the session, which is kept alive and logged in
// again when the server has forgotten it.
type Client struct {
	api
	about   About
	session *session
	soap    *soap.Client
	trust   *trust
	jar     *jar
	// address is host:port of the URL connected to.
	address string
	logout  func(ctx context.Context) error
	// datacenter is Config.Datacenter.
	datacenter string

	stop   context.CancelFunc // ends the keepalive
	mu     sync.Mutex
	closed bool
	leases map[*Lease]struct{}
	calls  map[*context.CancelFunc]struct{}
	wg     sync.WaitGroup // keepalive and calls
	once   sync.Once
	result error
}

// api is what calls need: the way to the server, and its root objects.
type api struct {
	rt      soap.RoundTripper
	content types.ServiceContent
	log     *slog.Logger
}

// Connect logs in. Its errors are *problem.Error: Unreachable (a
// *CertificateError is in the chain when it is for lack of trust),
// Unauthorized, or Invalid for a Config that cannot work. The session lives
// until Close, also after ctx has ended.
func Connect(ctx context.Context, cfg Config, log *slog.Logger) (*Client, error) {
	return connect(ctx, cfg, log, keepaliveInterval)
}

func connect(ctx context.Context, cfg Config, log *slog.Logger, interval time.Duration) (*Client, error) {
	if cfg.URL == nil || cfg.URL.Hostname() == "" {
		return nil, problem.New(problem.Invalid, "connect to vSphere", errors.New("no server is named"), "set GOVC_URL")
	}
	what := "connect to " + cfg.URL.Host
	if cfg.Username == "" {
		return nil, problem.New(problem.Invalid, what, errors.New("no user name is given"), "set GOVC_USERNAME and GOVC_PASSWORD")
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t, err := newTrust(cfg)
	if err != nil {
		return nil, err
	}
	cookies, err := newJar()
	if err != nil {
		return nil, failure(what, err)
	}
	port := "443"
	if cfg.URL.Scheme == "http" {
		port = "80"
	}
	c := &Client{trust: t, jar: cookies, address: hostPort(cfg.URL.Host, port), datacenter: cfg.Datacenter, leases: map[*Lease]struct{}{}, calls: map[*context.CancelFunc]struct{}{}}
	c.soap = soap.NewClient(cfg.URL, cfg.Insecure)
	c.soap.UserAgent = userAgent
	c.soap.Transport = t.transport(c.address, pins(cfg.Thumbprint, ""))
	c.soap.Jar = cookies
	c.soap.CheckRedirect = noRedirect

	dctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := c.login(dctx, cfg, log, what); err != nil {
		c.soap.Transport.(*http.Transport).CloseIdleConnections()
		return nil, err
	}
	kctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	c.wg.Go(func() { c.keepalive(kctx, interval) })
	return c, nil
}

// noRedirect makes a redirect an answer: neither credentials nor a disk's
// ticket go where a server points.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func (c *Client) login(ctx context.Context, cfg Config, log *slog.Logger, what string) error {
	vim, err := vim25.NewClient(ctx, c.soap)
	if err != nil {
		return failure(what, err)
	}
	content := vim.ServiceContent
	if content.SessionManager == nil {
		return problem.New(problem.Unreachable, what, errors.New("the server has no session manager"),
			"check that GOVC_URL is the address of a vCenter or ESXi host")
	}
	manager := *content.SessionManager
	user, password := cfg.Username, cfg.Password
	var current types.UserSession
	s := &session{rt: c.soap, log: log}
	s.login = func(ctx context.Context) error {
		if err := c.jar.forget(); err != nil {
			return err
		}
		res, err := methods.Login(ctx, s, &types.Login{This: manager, UserName: user, Password: password, Locale: "en_US"})
		if err == nil {
			current = res.Returnval
		}
		return err
	}
	c.logout = func(ctx context.Context) error {
		_, err := methods.Logout(ctx, s, &types.Logout{This: manager})
		return err
	}
	if err := s.login(ctx); err != nil {
		return failure(what+" as "+user, err)
	}
	c.session = s
	c.api = api{rt: s, content: content, log: log}
	a := content.About
	c.about = About{
		Host: cfg.URL.Host, FullName: a.FullName, Version: a.Version, APIVersion: a.ApiVersion,
		InstanceUUID: a.InstanceUuid, VCenter: a.ApiType == "VirtualCenter", User: current.UserName,
	}
	return nil
}

// About says which server this is.
func (c *Client) About() About { return c.about }

func (c *Client) keepalive(ctx context.Context, interval time.Duration) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		_, err := methods.CurrentTime(ctx, c.rt, &types.CurrentTime{This: types.ManagedObjectReference{Type: "ServiceInstance", Value: "ServiceInstance"}})
		if err != nil && ctx.Err() == nil {
			c.log.Warn("vSphere session keepalive failed", slog.String("error", reason(err).Error()))
		}
	}
}

// spawn runs f in a goroutine that outlives its caller. Its context ends after
// d, or when Close has waited for it in vain.
func (c *Client) spawn(ctx context.Context, d time.Duration, f func(ctx context.Context)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d)
	c.calls[&cancel] = struct{}{}
	c.wg.Go(func() {
		defer func() {
			cancel()
			c.mu.Lock()
			delete(c.calls, &cancel)
			c.mu.Unlock()
		}()
		f(ctx)
	})
	return nil
}

// alive gives a context for calls that must be made although ctx has ended.
// A deadline of ctx that is still to come holds.
func alive(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	until := time.Now().Add(d)
	if own, ok := ctx.Deadline(); ok && ctx.Err() == nil && own.Before(until) {
		until = own
	}
	return context.WithDeadline(context.WithoutCancel(ctx), until)
}

// Close aborts leases that are still open, ends every goroutine and logs out.
// It takes at most 10 seconds, works although ctx has ended, and may be called
// again.
func (c *Client) Close(ctx context.Context) error {
	c.once.Do(func() { c.result = c.close(ctx) })
	return c.result
}

func (c *Client) close(ctx context.Context) error {
	ctx, cancel := alive(ctx, closeTimeout)
	defer cancel()
	c.mu.Lock()
	c.closed = true
	var open []*Lease
	for l := range c.leases {
		open = append(open, l)
	}
	c.mu.Unlock()
	c.stop()
	var errs []error
	for _, l := range open {
		if err := l.Close(ctx, ErrClosed); err != nil {
			errs = append(errs, err)
		}
	}
	waited := make(chan struct{})
	go func() {
		c.wg.Wait()
		close(waited)
	}()
	select {
	case <-waited:
	case <-ctx.Done():
		c.mu.Lock()
		for cancel := range c.calls {
			(*cancel)()
		}
		c.mu.Unlock()
	}
	c.session.close()
	<-waited
	if err := c.logout(ctx); err != nil && !isFault[*types.NotAuthenticated](err) {
		errs = append(errs, failure("log out of vSphere", err))
	}
	c.soap.Transport.(*http.Transport).CloseIdleConnections()
	return errors.Join(errs...)
}

func (c *Client) vmRef(moref string) types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "VirtualMachine", Value: strings.TrimPrefix(moref, "moref:")}
}
