package vsphere

import (
	"bufio"
	"crypto/sha1" //nolint:gosec // thumbprints of vSphere are SHA-1 by definition
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// CertificateError says that a server's certificate is not trusted. SHA1 and
// SHA256 are the thumbprints of the certificate it showed, as they can be
// written into a known-hosts file once checked. Trying again does not help.
type CertificateError struct {
	Host         string // host:port
	SHA1, SHA256 string // upper case hexadecimal with colons
	// What the certificate says of itself, which proves nothing.
	Subject, Issuer string
	NotAfter        time.Time
	Err             error // why no authority vouches for it
}

// Error names host and SHA-256 thumbprint.
func (e *CertificateError) Error() string {
	return fmt.Sprintf("the certificate of %s is not trusted: %v; its SHA-256 thumbprint is %s", e.Host, e.Err, e.SHA256)
}

// Unwrap gives the x509 error.
func (e *CertificateError) Unwrap() error { return e.Err }

// Temporary is false: see net.Error.
func (e *CertificateError) Temporary() bool { return false }

// trust decides about certificates. It is not changed once made.
type trust struct {
	roots    *x509.CertPool // nil: the system's
	known    map[string][]string
	insecure bool
}

func newTrust(cfg Config) (*trust, error) {
	t := &trust{insecure: cfg.Insecure}
	if len(cfg.CAFiles) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			// A machine without a store of its own still has the files.
			pool = x509.NewCertPool()
		}
		for _, name := range cfg.CAFiles {
			data, err := os.ReadFile(filepath.Clean(name))
			if err != nil {
				return nil, problem.New(problem.Invalid, "read CA certificates", err, "check GOVC_TLS_CA_CERTS")
			}
			if !pool.AppendCertsFromPEM(data) {
				return nil, problem.New(problem.Invalid, "read CA certificates",
					fmt.Errorf("%s holds no PEM certificate", name), "check GOVC_TLS_CA_CERTS")
			}
		}
		t.roots = pool
	}
	t.known = map[string][]string{}
	for _, name := range filepath.SplitList(cfg.KnownHostsFile) {
		if err := t.load(name); err != nil {
			return nil, problem.New(problem.Invalid, "read known hosts", err, "check GOVC_TLS_KNOWN_HOSTS")
		}
	}
	return t, nil
}

func (t *trust) load(name string) error {
	f, err := os.Open(filepath.Clean(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // govc makes the file when it first has something to remember
	}
	if err != nil {
		return err
	}
	defer f.Close()
	known, err := parseKnownHosts(f)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	for host, prints := range known {
		t.known[host] = append(t.known[host], prints...)
	}
	return nil
}

// parseKnownHosts reads lines "host[:port] thumbprint". As with govc, a line
// that is nothing of the kind is skipped: it makes nothing trusted.
func parseKnownHosts(r io.Reader) (map[string][]string, error) {
	known := map[string][]string{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		host, rest, ok := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		if !ok || strings.HasPrefix(host, "#") {
			continue
		}
		if thumb, ok := normalThumbprint(rest); ok {
			host = hostPort(host, "443")
			known[host] = append(known[host], thumb)
		}
	}
	return known, lines.Err()
}

// hostPort gives host:port in lower case, with port when the address has none.
func hostPort(addr, port string) string {
	addr = strings.ToLower(addr)
	if h, p, err := net.SplitHostPort(addr); err == nil {
		return net.JoinHostPort(h, p)
	}
	return net.JoinHostPort(strings.Trim(addr, "[]"), port)
}

// normalThumbprint gives upper case hexadecimal without separators: 40 digits
// for SHA-1, 64 for SHA-256. Anything else is not a thumbprint.
func normalThumbprint(s string) (string, bool) {
	s = strings.ToUpper(strings.NewReplacer(":", "", "-", "", " ", "").Replace(strings.TrimSpace(s)))
	if len(s) != 2*sha1.Size && len(s) != 2*sha256.Size {
		return "", false
	}
	_, err := hex.DecodeString(s)
	return s, err == nil
}

func thumbprints(cert *x509.Certificate) (one, two56 string) {
	a := sha1.Sum(cert.Raw) //nolint:gosec // see the import
	b := sha256.Sum256(cert.Raw)
	return strings.ToUpper(hex.EncodeToString(a[:])), strings.ToUpper(hex.EncodeToString(b[:]))
}

func colons(s string) string {
	var b strings.Builder
	for i := 0; i+1 < len(s); i += 2 {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(s[i : i+2])
	}
	return b.String()
}

// pins turns what a lease says of a host's certificate into thumbprints: its
// sslThumbprint and, since vSphere 9, its sslCertificate in PEM.
func pins(thumbprint, certificate string) []string {
	var out []string
	if p, ok := normalThumbprint(thumbprint); ok {
		out = append(out, p)
	}
	if block, _ := pem.Decode([]byte(certificate)); block != nil && block.Type == "CERTIFICATE" {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			_, p := thumbprints(cert)
			out = append(out, p)
		}
	}
	return out
}

// tlsConfig is for connections to one host only: the check is bound to its
// name, whatever address or proxy the connection goes to.
func (t *trust) tlsConfig(addr string, pins []string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		// VerifyConnection does all of the checking, on resumed sessions too.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyConnection: func(cs tls.ConnectionState) error {
			return t.verify(addr, cs.PeerCertificates, pins)
		},
	}
}

// verify accepts a chain when an authority vouches for it and the host's
// name, or else its certificate is known by thumbprint, or else everything is
// accepted.
func (t *trust) verify(addr string, chain []*x509.Certificate, pins []string) error {
	if len(chain) == 0 {
		return errors.New("the server showed no certificate")
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("split address: %w", err)
	}
	opts := x509.VerifyOptions{DNSName: host, Roots: t.roots, Intermediates: x509.NewCertPool()}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err = chain[0].Verify(opts); err == nil {
		return nil
	}
	one, two56 := thumbprints(chain[0])
	for _, p := range slices.Concat(t.known[addr], pins) {
		if p == one || p == two56 {
			return nil
		}
	}
	if t.insecure {
		return nil
	}
	return &CertificateError{Host: addr, SHA1: colons(one), SHA256: colons(two56), Err: err,
		Subject: chain[0].Subject.String(), Issuer: chain[0].Issuer.String(), NotAfter: chain[0].NotAfter}
}

const (
	dialTimeout      = 15 * time.Second
	handshakeTimeout = 15 * time.Second
	// headerTimeout is how long an ESXi host may take before it begins to
	// send a disk: it opens the disk's whole chain first.
	headerTimeout = 2 * time.Minute
	idleTimeout   = 90 * time.Second
	// nfcReadBuffer saves system calls: a disk comes at hundreds of MB/s.
	nfcReadBuffer = 256 << 10
)

// transport speaks HTTP/1.1 to one host: an HTTP/2 connection would put all
// disks of a host on one TCP connection and its window.
func (t *trust) transport(addr string, pins []string) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:     t.tlsConfig(addr, pins),
		TLSHandshakeTimeout: handshakeTimeout,
		IdleConnTimeout:     idleTimeout,
		DisableCompression:  true,
		Protocols:           &protocols,
	}
}
