package auth

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
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/logging"
	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// lockedBuffer is a bytes.Buffer for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func logger() (*slog.Logger, *lockedBuffer) {
	b := &lockedBuffer{}
	return slog.New(logging.New(b, slog.LevelDebug, "")), b
}

// lookAtOnce lets a live value look at its files each time it is asked.
func lookAtOnce[T any](l *live[T]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.looked = time.Time{}
}

func request(header ...string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/status", nil)
	for _, h := range header {
		r.Header.Add("Authorization", h)
	}
	return r
}

func TestIdentify(t *testing.T) {
	ctx := t.Context()
	file := filepath.Join(t.TempDir(), "tokens")
	op, opSecret, err := AddToken(ctx, file, "ci", Operator, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	_, viewSecret, err := AddToken(ctx, file, "board", Viewer, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	// One that has expired can only be made by hand.
	if err := changeTokens(ctx, file, func(tokens []Token) ([]Token, error) {
		return append(tokens, Token{ID: "00000000", Name: "old", Role: Operator, Expires: time.Now().Add(-time.Minute), hash: hashSecret("old")}), nil
	}); err != nil {
		t.Fatal(err)
	}
	log, out := logger()
	a, err := NewAuthenticator(Options{TokenFile: file, ClientCerts: true, Viewers: []string{"board1"}, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	cert := func(name string, verified bool) *http.Request {
		r := request()
		c := &x509.Certificate{Subject: pkix.Name{CommonName: name}, SerialNumber: big.NewInt(255), Raw: []byte(name), NotAfter: time.Now().Add(time.Hour)}
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}}
		if verified {
			r.TLS.VerifiedChains = [][]*x509.Certificate{{c}}
		}
		return r
	}
	both := cert("web", true)
	both.Header.Set("Authorization", "Bearer wrong")
	ended := cert("web", true)
	ended.TLS.VerifiedChains[0][0].NotAfter = time.Now().Add(-time.Second)
	peered := request()
	peered = peered.WithContext(context.WithValue(ctx, peerKey{}, peer{uid: 7, pid: 8}))
	for name, c := range map[string]struct {
		r    *http.Request
		who  string
		role Role
		err  error
	}{
		"operator":          {request("Bearer " + opSecret), "token:ci", Operator, nil},
		"viewer":            {request("bearer  " + viewSecret), "token:board", Viewer, nil},
		"expired":           {request("Bearer old"), "", "", ErrUnknown},
		"wrong":             {request("Bearer " + opSecret[:len(opSecret)-1] + "_"), "", "", ErrUnknown},
		"the id":            {request("Bearer " + op.ID), "", "", ErrUnknown},
		"basic":             {request("Basic " + opSecret), "", "", ErrUnknown},
		"no scheme":         {request(opSecret), "", "", ErrUnknown},
		"empty":             {request("Bearer "), "", "", ErrUnknown},
		"empty header":      {request(""), "", "", ErrUnknown},
		"long":              {request("Bearer " + strings.Repeat("x", 1<<16)), "", "", ErrUnknown},
		"two":               {request("Bearer "+opSecret, "Bearer "+opSecret), "", "", ErrUnknown},
		"none":              {request(), "", "", ErrMissing},
		"certificate":       {cert("web", true), "cert:web", Operator, nil},
		"viewer's":          {cert("board1", true), "cert:board1", Viewer, nil},
		"nameless":          {cert("", true), "cert:serial ff", Operator, nil},
		"unverified":        {cert("web", false), "", "", ErrMissing},
		"certificate ended": {ended, "", "", ErrUnknown},
		"a bad token wins":  {both, "", "", ErrUnknown},
		"peer":              {peered, "uid:7", Operator, nil},
		"hash of the token": {request("Bearer " + string(op.hash[:])), "", "", ErrUnknown},
	} {
		id, err := a.Identify(c.r)
		if !errors.Is(err, c.err) || id.Who != c.who || id.Role != c.role || err == nil && id.ID == "" {
			t.Errorf("%s: %+v, %v", name, id, err)
		}
	}
	if !a.Required() || a.Tokens() != 3 || strings.Contains(out.String(), opSecret) {
		t.Errorf("required %v, %d tokens, log %s", a.Required(), a.Tokens(), out)
	}
	open, err := NewAuthenticator(Options{})
	if err != nil || open.Required() || open.Reload() != nil {
		t.Error(err)
	}
	if id, err := open.Identify(request("Bearer x")); err != nil || id.Role != Operator || id.Who != "anonymous" {
		t.Errorf("nothing is asked for: %+v, %v", id, err)
	}
	if _, err := NewAuthenticator(Options{TokenFile: filepath.Dir(file)}); problem.KindOf(err) != problem.Invalid {
		t.Errorf("a folder: %v", err)
	}
}

// TestTokensReload: changes are taken when they are good, and audited.
func TestTokensReload(t *testing.T) {
	ctx := t.Context()
	file := filepath.Join(t.TempDir(), "tokens")
	log, out := logger()
	a, err := NewAuthenticator(Options{TokenFile: file, Logger: log, Audit: log})
	if err != nil || a.Tokens() != 0 {
		t.Fatalf("no file yet: %d, %v", a.Tokens(), err)
	}
	knows := func(secret string) bool {
		lookAtOnce(a.tokens)
		_, err := a.Identify(request("Bearer " + secret))
		return err == nil
	}
	tok, secret, err := AddToken(ctx, file, "ci", Viewer, time.Time{})
	if err != nil || !knows(secret) {
		t.Fatalf("the added token is not known: %v", err)
	}
	if want := "INFO: audit | who=file:" + file + ", action=add token, target=token:ci, id=" + tok.ID + ", role=viewer, outcome=done\n"; !strings.Contains(out.String(), want) {
		t.Errorf("the log lacks %q: %s", want, out)
	}
	// Files that cannot be trusted change nothing, and are complained of once.
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if !knows(secret) {
			t.Error("a bad file took the tokens away")
		}
	}
	if n := strings.Count(out.String(), "ERROR: changed files were not taken"); n != 1 {
		t.Errorf("%d complaints: %s", n, out)
	}
	if err := a.Reload(); problem.KindOf(err) != problem.Invalid {
		t.Errorf("reload: %v", err)
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := RemoveToken(ctx, file, "ci"); err != nil || knows(secret) {
		t.Errorf("the removed token is known: %v", err)
	}
	if !strings.Contains(out.String(), "action=remove token, target=token:ci") {
		t.Error("the removal is not audited")
	}
	_, secret, err = AddToken(ctx, file, "ci", Viewer, time.Time{})
	if err != nil || !knows(secret) {
		t.Fatalf("the second token is not known: %v", err)
	}
	if err := os.Remove(file); err != nil || knows(secret) {
		t.Errorf("without its file the token is known: %v", err)
	}
	if strings.Contains(out.String(), secret) {
		t.Error("a secret is in the log")
	}
	// Asked within a second, nothing is looked at.
	_, secret, err = AddToken(ctx, file, "late", Viewer, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Identify(request("Bearer " + secret)); !errors.Is(err, ErrUnknown) {
		t.Errorf("looked too early: %v", err)
	}
	if err := a.Reload(); err != nil || !knows(secret) {
		t.Errorf("asked for a reload: %v", err)
	}
}

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
	n    int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key, a.pem, _ = a.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) issue(t *testing.T, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, []byte, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a.n++
	c.SerialNumber = big.NewInt(a.n)
	c.NotBefore = time.Now().Add(-time.Hour)
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(90 * 24 * time.Hour)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return out, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

func (a *authority) server(t *testing.T, name string) (cert, key []byte) {
	_, _, cert, key = a.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	return cert, key
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCertificatesReload goes through real handshakes.
func TestCertificatesReload(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile, caFile := dir+"/cert", dir+"/key", dir+"/ca"
	ca := newAuthority(t)
	cert1, key1 := ca.server(t, "one.example")
	cert2, key2 := ca.server(t, "two.example")
	write(t, certFile, cert1)
	write(t, keyFile, key1)
	write(t, caFile, ca.pem)
	log, out := logger()
	c, err := LoadCertificates(certFile, keyFile, caFile, log)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.VerifiedChains) > 0 {
			io.WriteString(w, r.TLS.VerifiedChains[0][0].Subject.CommonName)
		}
	}))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	srv.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.Current(), nil }}
	srv.StartTLS()
	defer srv.Close()
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	// ask makes one connection and gives the server's name, and the client's
	// as the server saw it.
	ask := func(max uint16, client ...tls.Certificate) (server, seen string, err error) {
		tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: client, MaxVersion: max}}
		resp, err := (&http.Client{Transport: tr}).Get(srv.URL)
		if err != nil {
			return "", "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return resp.TLS.PeerCertificates[0].Subject.CommonName, string(body), err
	}
	expect := func(want string) {
		t.Helper()
		lookAtOnce(c.live)
		if name, _, err := ask(0); name != want || err != nil {
			t.Errorf("the certificate is of %q, want %q: %v", name, want, err)
		}
	}
	expect("one.example")
	if !c.Serves("one.example") || c.Serves("two.example") || !c.Serves("127.0.0.1") || c.Serves("10.0.0.1") {
		t.Error("served names are wrong")
	}
	write(t, certFile, cert2) // does not belong to the key yet
	expect("one.example")
	write(t, keyFile, key2)
	expect("two.example")
	write(t, keyFile, []byte("topsecret"))
	expect("two.example")
	if err := c.Reload(); problem.KindOf(err) != problem.Invalid || strings.Contains(err.Error(), "topsecret") {
		t.Errorf("reload: %v", err)
	}
	if err := os.Remove(keyFile); err != nil {
		t.Fatal(err)
	}
	expect("two.example")
	write(t, keyFile, key2)
	expect("two.example")
	if log := out.String(); strings.Count(log, "ERROR") < 3 || strings.Contains(log, "topsecret") || strings.Contains(log, "PRIVATE") {
		t.Errorf("log: %s", log)
	}
	// TLS 1.1 is refused, by the server.
	tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}}
	if resp, err := (&http.Client{Transport: tr}).Get(srv.URL); err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("TLS 1.1: %v, %v", resp, err)
	}
	if _, _, err := ask(tls.VersionTLS12); err != nil {
		t.Errorf("TLS 1.2: %v", err)
	}
	// Client certificates: of the authority, of another one, after it changed.
	pair := func(a *authority, name string) tls.Certificate {
		_, _, cert, key := a.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		p, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	other := newAuthority(t)
	if _, seen, err := ask(0, pair(ca, "web01")); seen != "web01" || err != nil {
		t.Errorf("client certificate: %q, %v", seen, err)
	}
	// One of another authority: Go's client does not show it, as the server
	// names whom it takes.
	if _, seen, _ := ask(0, pair(other, "stranger")); seen != "" {
		t.Errorf("a stranger is %q", seen)
	}
	forced := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		p := pair(other, "stranger")
		return &p, nil
	}}}
	if resp, err := (&http.Client{Transport: forced}).Get(srv.URL); err == nil {
		t.Errorf("a stranger's certificate is taken: %s", resp.Status)
	}
	write(t, caFile, other.pem)
	lookAtOnce(c.live)
	if _, seen, err := ask(0, pair(other, "web02")); seen != "web02" || err != nil {
		t.Errorf("after the authority changed: %q, %v", seen, err)
	}
	if _, seen, _ := ask(0, pair(ca, "web01")); seen != "" {
		t.Errorf("the authority of before is taken: %q", seen)
	}
}

func TestCertificateFaults(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t)
	cert, key := ca.server(t, "x")
	_, otherKey := ca.server(t, "y")
	_, _, ending, endingKey := ca.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "z"}, NotAfter: time.Now().Add(24 * time.Hour)})
	for name, data := range map[string][]byte{
		"cert": cert, "key": key, "other": otherKey, "ending": ending, "endingkey": endingKey, "empty": nil, "large": make([]byte, maxPEM+1),
	} {
		write(t, filepath.Join(dir, name), data)
	}
	for name, c := range map[string]struct{ cert, key, ca, want string }{
		"no file":     {"nowhere", "key", "", "read TLS certificate " + dir + "/nowhere: no such file"},
		"no key":      {"cert", "nowhere", "", "read TLS key"},
		"other key":   {"cert", "other", "", "does not match"},
		"not PEM":     {"empty", "key", "", "use TLS certificate"},
		"large":       {"large", "key", "", "larger than"},
		"no ca":       {"cert", "key", "nowhere", "read client CA"},
		"ca not PEM":  {"cert", "key", "key", "no certificate in PEM form"},
		"key as cert": {"key", "key", "", "use TLS certificate"},
	} {
		caFile := c.ca
		if caFile != "" {
			caFile = filepath.Join(dir, caFile)
		}
		_, err := LoadCertificates(filepath.Join(dir, c.cert), filepath.Join(dir, c.key), caFile, nil)
		if err == nil || problem.KindOf(err) != problem.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	log, out := logger()
	if _, err := LoadCertificates(dir+"/ending", dir+"/endingkey", "", log); err != nil || !strings.Contains(out.String(), "WARN: the TLS certificate") {
		t.Errorf("ends tomorrow: %v, %s", err, out)
	}
}

func TestListenUnix(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	path := filepath.Join(dir, "sock")
	l, err := ListenUnix(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != os.ModeSocket|socketMode {
		t.Errorf("mode is %v, %v", info.Mode(), err)
	}
	got := make(chan Identity, 1)
	srv := &http.Server{ConnContext: ConnContext, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		a, err := NewAuthenticator(Options{TokenFile: "/nowhere"})
		if err != nil {
			t.Error(err)
		}
		id, err := a.Identify(r)
		if err != nil || !strings.HasPrefix(Remote(r.Context(), r.RemoteAddr), "unix:pid=") {
			t.Errorf("%v from %s", err, Remote(r.Context(), r.RemoteAddr))
		}
		got <- id
	})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	resp, err := (&http.Client{Transport: tr}).Get("http://localhost/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if id := <-got; id.Who != fmt.Sprintf("uid:%d", os.Getuid()) || id.Role != Operator {
		t.Errorf("the peer is %+v", id)
	}
	if _, err := ListenUnix(ctx, path); problem.KindOf(err) != problem.Conflict || !strings.Contains(err.Error(), "another program listens") {
		t.Errorf("in use: %v", err)
	}
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	<-done
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
	// Left behind by a killed daemon: replaced.
	old, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	old.(*net.UnixListener).SetUnlinkOnClose(false)
	old.Close()
	l, err = ListenUnix(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	// Replaced by somebody else: not removed.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(t, path, nil)
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("somebody else's file is gone: %v", err)
	}
	for name, p := range map[string]string{"a file": path, "no folder": dir + "/no/sock", "too long": dir + "/" + strings.Repeat("x", 100)} {
		if l, err := ListenUnix(ctx, p); err == nil {
			t.Errorf("%s: listens", name)
			l.Close()
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("left over: %v, %v", names, err)
	}
}
