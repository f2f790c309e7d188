package daemon

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hyper2kvm/hyper2kvm/daemon/auth"
	"github.com/hyper2kvm/hyper2kvm/daemon/client"
	"github.com/hyper2kvm/hyper2kvm/daemon/jobs"
	"github.com/hyper2kvm/hyper2kvm/daemon/models"
	"github.com/hyper2kvm/hyper2kvm/internal/config"
	"github.com/hyper2kvm/hyper2kvm/internal/logging"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// logs is a log that can be waited for.
type logs struct {
	mu   sync.Mutex
	b    bytes.Buffer
	news chan struct{}
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.news <- struct{}{}:
	default:
	}
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// running is a daemon in this process.
type running struct {
	fake
	addr   string
	log    *logs
	reload chan os.Signal
	next   chan Config // what a reload reads
	bound  int         // reloads whose settings are in force
	stop   func() error
}

func startDaemon(t *testing.T, cfg Config) *running {
	t.Helper()
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	cfg.MaxRunning = 1
	r := &running{fake: fake{make(chan jobs.Spec, 10)}, log: &logs{news: make(chan struct{}, 1)}, reload: make(chan os.Signal), next: make(chan Config, 1)}
	log := slog.New(logging.New(r.log, slog.LevelDebug, ""))
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan string, 1), make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{
			Config: cfg, Runner: r.fake, VMLister: r.fake, Logger: log, Audit: log, Ready: func(addr string) { ready <- addr },
			Reload: r.reload, Load: func() (Config, func(), error) {
				select {
				case c := <-r.next:
					return c, func() { r.bound++ }, nil
				default:
					return Config{}, nil, errors.New("line 1: broken")
				}
			},
		})
	}()
	select {
	case r.addr = <-ready:
	case err := <-done:
		cancel()
		t.Fatal(err)
	}
	r.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(20 * time.Second):
			return errors.New("the daemon does not stop")
		}
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// waitFor waits until the log holds text n times.
func (r *running) waitFor(t *testing.T, text string, n int) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for strings.Count(r.log.String(), text) < n {
		select {
		case <-r.log.news:
		case <-deadline:
			t.Fatalf("the log does not say %q %d times:\n%s", text, n, r.log)
		}
	}
}

// reloadWith reloads with a configuration, or with one that cannot be read.
func (r *running) reloadWith(t *testing.T, cfg *Config) {
	t.Helper()
	n := strings.Count(r.log.String(), "action=reload configuration")
	if cfg != nil {
		r.next <- *cfg
	}
	r.reload <- syscall.SIGHUP
	r.waitFor(t, "action=reload configuration", n+1)
}

// certificates writes a CA, a server certificate for 127.0.0.1 and a client's
// into dir.
func certificates(t *testing.T, dir string, names ...string) {
	t.Helper()
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	for i, name := range append([]string{"ca"}, names...) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IsCA: i == 0, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{name + ".example"},
		}
		if i == 0 {
			ca, caKey = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, ca, &key.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		for ext, block := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: keyDER}} {
			if err := os.WriteFile(filepath.Join(dir, name+ext), pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func pool(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(data) {
		t.Fatal("no CA")
	}
	return p
}

// TestExposure: who may be served, by what the configuration has.
func TestExposure(t *testing.T) {
	dir := t.TempDir()
	certificates(t, dir, "server")
	tlsFiles := config.TLS{Cert: dir + "/server.pem", Key: dir + "/server.key"}
	withCA := tlsFiles
	withCA.ClientCA = dir + "/ca.pem"
	tokens := dir + "/tokens"
	for name, c := range map[string]struct {
		cfg  Config
		want string
	}{
		"loopback":             {Config{Addr: "localhost:0"}, ""},
		"loopback 2":           {Config{Addr: "127.8.8.8:0"}, ""},
		"loopback 6":           {Config{Addr: "[::1]:0"}, ""},
		"everywhere":           {Config{Addr: ":0"}, "neither tokens nor TLS"},
		"address":              {Config{Addr: "192.0.2.1:0"}, "neither tokens nor TLS"},
		"tokens without TLS":   {Config{Addr: "0.0.0.0:0", TokensFile: tokens}, "has no TLS"},
		"TLS without tokens":   {Config{Addr: "0.0.0.0:0", TLS: tlsFiles}, "neither tokens nor client certificates"},
		"TLS and tokens":       {Config{Addr: "0.0.0.0:0", TLS: tlsFiles, TokensFile: tokens}, ""},
		"TLS and certificates": {Config{Addr: "0.0.0.0:0", TLS: withCA}, ""},
		"bad certificate":      {Config{Addr: "localhost:0", TLS: config.TLS{Cert: dir + "/server.pem", Key: dir + "/ca.key"}}, "does not match"},
		"bad tokens":           {Config{Addr: "localhost:0", TokensFile: dir}, "not a regular file"},
		"bad root":             {Config{Addr: "localhost:0", OutputRoots: []string{"/etc/x"}}, "system folder"},
		"no port":              {Config{Addr: "localhost"}, "HOST:PORT"},
	} {
		_, err := Check(t.Context(), c.cfg)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || problem.KindOf(err) != problem.Invalid) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if c.want != "" {
			if err := Run(t.Context(), Options{Config: c.cfg, Runner: fake{}, VMLister: fake{}}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s runs: %v", name, err)
			}
		}
	}
}

// TestTLSAndTokens goes through the life of a daemon that others reach.
func TestTLSAndTokens(t *testing.T) {
	dir := t.TempDir()
	certificates(t, dir, "server", "web01", "board")
	tokens := dir + "/tokens"
	_, operator, err := auth.AddToken(t.Context(), tokens, "ci", auth.Operator, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	_, viewer, err := auth.AddToken(t.Context(), tokens, "wall", auth.Viewer, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Addr: "0.0.0.0:0", TokensFile: tokens, Hosts: []string{"kvm1.example"},
		TLS: config.TLS{Cert: dir + "/server.pem", Key: dir + "/server.key", ClientCA: dir + "/ca.pem", Viewers: []string{"board"}},
	}
	r := startDaemon(t, cfg)
	host, port, err := net.SplitHostPort(r.addr)
	if err != nil || host != "0.0.0.0" {
		t.Fatal(r.addr, err)
	}
	base := "https://127.0.0.1:" + port
	call := func(token string, certs ...tls.Certificate) (look, change error) {
		c := &client.Client{BaseURL: base, Token: token, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool(t, dir), Certificates: certs}}}
		defer c.Close()
		_, look = c.Status(t.Context())
		_, change = c.Cancel(t.Context(), []string{"cafecafe"})
		return look, change
	}
	pair := func(name string) tls.Certificate {
		p, err := tls.LoadX509KeyPair(dir+"/"+name+".pem", dir+"/"+name+".key")
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	const yes, no = problem.Kind(-1), problem.Unauthorized
	kind := func(err error) problem.Kind {
		if err == nil {
			return yes
		}
		return problem.KindOf(err)
	}
	for name, c := range map[string]struct {
		token        string
		cert         []tls.Certificate
		look, change problem.Kind
	}{
		"nothing":              {"", nil, no, no},
		"wrong":                {"h2k_wrong", nil, no, no},
		"operator":             {operator, nil, yes, yes},
		"viewer":               {viewer, nil, yes, no},
		"certificate":          {"", []tls.Certificate{pair("web01")}, yes, yes},
		"viewer's certificate": {"", []tls.Certificate{pair("board")}, yes, no},
	} {
		if look, change := call(c.token, c.cert...); kind(look) != c.look || kind(change) != c.change {
			t.Errorf("%s: look: %v, change: %v", name, look, change)
		}
	}
	// Health is open, plain HTTP is not spoken, foreign names are refused.
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool(t, dir)}}}
	get := func(url, host string) string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := hc.Do(req)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(resp.StatusCode, " ", resp.Proto, " ", string(body))
	}
	for host, want := range map[string]string{
		"": "200", "kvm1.example:1": "200", "server.example": "200", "10.1.2.3": "200", "evil.example": "403", "web01.example": "403",
	} {
		if got := get(base+"/health", host); !strings.HasPrefix(got, want) {
			t.Errorf("host %q: %s", host, got)
		}
	}
	if got := get("http://127.0.0.1:"+port+"/health", ""); !strings.HasPrefix(got, "400") {
		t.Errorf("plain HTTP: %s", got)
	}
	// A token added and one removed count within a second, without a reload.
	_, late, err := auth.AddToken(t.Context(), tokens, "late", auth.Viewer, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := auth.RemoveToken(t.Context(), tokens, "ci"); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		look, _ := call(late)
		gone, _ := call(operator)
		if look == nil && kind(gone) == no {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("late: %v, removed: %v", look, gone)
		}
		<-time.After(50 * time.Millisecond)
	}
	// New certificates count for new connections, and old ones stay when the
	// new are broken.
	if err := os.WriteFile(dir+"/server.key", []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.reloadWith(t, &cfg)
	if look, _ := call(viewer); look != nil || !strings.Contains(r.log.String(), "the configuration was not reloaded") {
		t.Errorf("broken key: %v", look)
	}
	certificates(t, dir, "server") // of a new authority
	r.reloadWith(t, &cfg)
	if look, _ := call(viewer); look != nil {
		t.Errorf("new certificates: %v", look)
	}
	// A configuration that would open the daemon to everybody is refused.
	open := cfg
	open.TokensFile, open.TLS.ClientCA, open.TLS.Viewers = "", "", nil
	r.reloadWith(t, &open)
	if look, _ := call(""); kind(look) != no {
		t.Errorf("opened to all: %v", look)
	}
	plain := cfg
	plain.TLS = config.TLS{}
	r.reloadWith(t, &plain)
	if !strings.Contains(r.log.String(), "TLS cannot be turned on or off") {
		t.Error("TLS off is not refused")
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	log := r.log.String()
	for _, secret := range []string{operator, viewer, late, "h2k_wrong", "PRIVATE"} {
		if strings.Contains(log, secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
	for _, want := range []string{"who=cert:web01, id=cert:", "who=token:wall", "outcome=denied: the role viewer may not do this", "who=file:" + tokens + ", action=remove token, target=token:ci"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q", want)
		}
	}
}

func TestUnixSocketOfTheDaemon(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/sock"
	r := startDaemon(t, Config{UnixSocket: path, TokensFile: dir + "/tokens"})
	over := &client.Client{BaseURL: "unix://" + path}
	defer over.Close()
	resp, err := over.SubmitDefinition(t.Context(), models.Definition{VMPath: "a", OutputPath: dir + "/out"})
	if err != nil || resp.Accepted != 1 {
		t.Fatalf("%+v, %v", resp, err)
	}
	<-r.started
	tcp := &client.Client{BaseURL: r.addr}
	defer tcp.Close()
	if _, err := tcp.Status(t.Context()); problem.KindOf(err) != problem.Unauthorized {
		t.Errorf("over TCP without a token: %v", err)
	}
	if _, err := (&client.Client{BaseURL: r.addr}).Health(t.Context()); err != nil {
		t.Errorf("health: %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
	if err := Run(t.Context(), Options{Config: Config{Addr: "127.0.0.1:0", UnixSocket: path}, Runner: fake{}, VMLister: fake{}}); problem.KindOf(err) != problem.Conflict {
		t.Errorf("a second daemon: %v", err)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
	want := fmt.Sprintf("who=uid:%d, id=uid:%d, role=operator, remote=unix:pid=%d, action=submit, jobs=%s", os.Getuid(), os.Getuid(), os.Getpid(), resp.JobIDs[0])
	if !strings.Contains(r.log.String(), want) || !strings.Contains(r.log.String(), "there is no token yet") {
		t.Errorf("the log lacks %q or the warning: %s", want, r.log)
	}
}

// TestOutputRoots: the folder is judged at submission and when the job begins.
func TestOutputRoots(t *testing.T) {
	dir := t.TempDir()
	root, outside := dir+"/srv", dir+"/outside"
	for _, d := range []string{root, outside} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, root+"/link"); err != nil {
		t.Fatal(err)
	}
	r := startDaemon(t, Config{OutputRoots: []string{root}, StateDir: dir + "/state"})
	c := &client.Client{BaseURL: r.addr}
	defer c.Close()
	submit := func(path string) (string, error) {
		resp, err := c.SubmitDefinition(t.Context(), models.Definition{Name: "n", VMPath: "a", OutputPath: path})
		if err != nil {
			return "", err
		}
		return resp.JobIDs[0], nil
	}
	for path, want := range map[string]string{
		outside: "it is not below an allowed output root (choose a folder below " + root + ")", "/etc/x": "not below", root + "/link/x": "escapes", "relative": "is not absolute",
		root + "/../outside": "output_path",
	} {
		if _, err := submit(path); problem.KindOf(err) != problem.Invalid || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), "choose") > 1 {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	// The first job holds the only slot; the folder of the second becomes a
	// link while it waits.
	first, err := submit(root + "/one")
	if err != nil {
		t.Fatal(err)
	}
	<-r.started
	second, err := submit(root + "/two/deep")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, root+"/two"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Cancel(t.Context(), []string{first}); err != nil {
		t.Fatal(err)
	}
	if err := c.Watch(t.Context(), second, 0, func(models.Event) error { return nil }); err != nil {
		t.Fatal(err)
	}
	j, err := c.Job(t.Context(), second)
	if err != nil || j.Status != models.Failed || !strings.Contains(j.Error, "escapes") {
		t.Errorf("%+v, %v", j, err)
	}
	if len(r.started) != 0 {
		t.Error("the second job has begun")
	}
}

// TestReload: what changes while the daemon runs, and what does not.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{
		VCenters: map[string]config.VCenter{"one": {}}, Defaults: models.Options{ParallelDownloads: new(3)},
		RateLimit: config.RateLimit{PerSecond: 1000, Burst: 1000}, StateDir: dir + "/state", LogFormat: "text",
	}
	r := startDaemon(t, cfg)
	c := &client.Client{BaseURL: r.addr}
	defer c.Close()
	var root string // that the last job was held to
	submit := func(vcenter, folder string) error {
		resp, err := c.SubmitDefinition(t.Context(), models.Definition{VMPath: "a", OutputPath: filepath.Join(dir, folder), VCenter: &models.VCenter{Name: vcenter}})
		if err == nil {
			spec := <-r.started
			root = spec.OutputRoot
			if _, err := c.Cancel(t.Context(), resp.JobIDs); err != nil {
				t.Error(err)
			}
			if err := c.Watch(t.Context(), spec.ID, 0, func(models.Event) error { return nil }); err != nil {
				t.Error(err)
			}
			return errors.New("downloads: " + fmt.Sprint(*spec.Definition.Options.ParallelDownloads))
		}
		return err
	}
	expect := func(err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	expect(submit("one", "a"), "downloads: 3")
	expect(submit("two", "b"), `knows no vCenter "two" (known: one)`)
	r.reloadWith(t, nil) // cannot be read
	expect(submit("one", "a"), "downloads: 3")
	if r.bound != 0 {
		t.Error("a broken configuration is in force")
	}

	next := cfg
	next.Addr, next.UnixSocket, next.StateDir, next.MaxRunning, next.LogFormat = "127.0.0.1:1", dir+"/s", dir+"/other", 9, "json"
	next.VCenters = map[string]config.VCenter{"two": {}}
	next.Defaults = models.Options{ParallelDownloads: new(7)}
	next.OutputRoots = []string{dir}
	next.StreamsPerHost, next.MaxStreams, next.Bandwidth = 5, 20, 1e9
	next.Warnings = []string{"look at this"}
	r.reloadWith(t, &next)
	expect(submit("two", "c"), "downloads: 7")
	if root != dir {
		t.Errorf("the job is held to %q", root)
	}
	expect(submit("one", "d"), `knows no vCenter "one" (known: two)`)
	expect(submit("two", "../elsewhere"), "not below")
	if l, err := c.Limits(t.Context()); err != nil || l.MaxRunningJobs != 9 || l.StreamsPerHost != 5 || l.MaxStreams != 20 || l.Bandwidth != 1e9 {
		t.Errorf("limits %+v, %v", l, err)
	}
	log := r.log.String()
	for _, setting := range []string{"addr", "unix_socket", "state_dir", "log_format"} {
		if !strings.Contains(log, "this setting does not change while the daemon runs: restart it | setting="+setting+"\n") {
			t.Errorf("nothing is said of %s", setting)
		}
	}
	if r.bound != 1 || !strings.Contains(log, "look at this") || !strings.Contains(log, "who=signal:SIGHUP, action=reload configuration, outcome=failed") ||
		!strings.Contains(log, "who=signal:SIGHUP, action=reload configuration, outcome=done") {
		t.Errorf("%d reloads: %s", r.bound, log)
	}
	// From here on tokens are asked for, and few requests are taken.
	next.TokensFile = dir + "/tokens"
	next.RateLimit = config.RateLimit{PerSecond: 1, Burst: 2}
	r.reloadWith(t, &next)
	_, err := c.Status(t.Context())
	expect(err, "carries no token")
	var last error
	for range 5 {
		_, last = c.Status(t.Context())
	}
	expect(last, "too many requests")
}
