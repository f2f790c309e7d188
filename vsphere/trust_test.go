package vsphere

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

func tlsServer(t *testing.T) (*httptest.Server, *x509.Certificate) {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 {
			http.Error(w, "HTTP/1.1 only", http.StatusHTTPVersionNotSupported)
		}
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s, s.Certificate()
}

func TestTrust(t *testing.T) {
	s, cert := tlsServer(t)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	one, two56 := thumbprints(cert)
	asPEM := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := write("ca.pem", asPEM)
	wrong := strings.Repeat("00:", 19) + "00"

	for _, tt := range []struct {
		name        string
		cfg         Config
		thumbprint  string
		certificate string
		ok          bool
	}{
		{"nothing", Config{}, "", "", false},
		{"authority", Config{CAFiles: []string{ca}}, "", "", true},
		{"authority, wrong thumbprint", Config{CAFiles: []string{ca}}, wrong, "", true},
		{"known by SHA-1", Config{KnownHostsFile: write("a", u.Host+" "+colons(one)+"\n")}, "", "", true},
		{"known by SHA-256", Config{KnownHostsFile: write("b", u.Host+" "+colons(two56)+"\n")}, "", "", true},
		{"known on another port", Config{KnownHostsFile: write("c", u.Hostname()+" "+colons(one)+"\n")}, "", "", false},
		{"another known", Config{KnownHostsFile: write("d", u.Host+" "+wrong+"\n")}, "", "", false},
		{"no such file", Config{KnownHostsFile: filepath.Join(dir, "none")}, "", "", false},
		{"lease SHA-1", Config{}, colons(one), "", true},
		{"lease SHA-1, lower case without colons", Config{}, strings.ToLower(one), "", true},
		{"lease SHA-256", Config{}, colons(two56), "", true},
		{"lease, wrong", Config{}, wrong, "", false},
		{"lease, cut short", Config{}, one[:20], "", false},
		{"lease certificate", Config{}, "", asPEM, true},
		{"lease certificate, wrong thumbprint", Config{}, wrong, asPEM, true},
		{"lease certificate, rubbish", Config{}, "", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", false},
		{"insecure", Config{Insecure: true}, "", "", true},
		{"insecure, wrong thumbprint", Config{Insecure: true}, wrong, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr, err := newTrust(tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			c := &Client{trust: tr, soap: newSOAP(t, "https://elsewhere.example/sdk")}
			client := c.fileClient(u, pins(tt.thumbprint, tt.certificate), map[string]*http.Transport{})
			defer client.CloseIdleConnections()
			// Twice, and then on a connection that may resume the session.
			for range 3 {
				resp, err := client.Get(s.URL)
				if resp != nil {
					resp.Body.Close()
					if resp.StatusCode != http.StatusOK {
						t.Error(resp.Status)
					}
				}
				client.CloseIdleConnections()
				if tt.ok != (err == nil) {
					t.Fatalf("error %v, want trusted %v", err, tt.ok)
				}
				ce, is := errors.AsType[*CertificateError](err)
				if err != nil && (!is || ce.Host != u.Host || ce.SHA1 != colons(one) || ce.SHA256 != colons(two56)) {
					t.Errorf("got %#v from %v", ce, err)
				}
			}
			if client.Jar != nil {
				t.Error("another host gets the session's cookie")
			}
		})
	}

	t.Run("name of the certificate", func(t *testing.T) {
		tr, err := newTrust(Config{CAFiles: []string{ca}})
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.verify("not.the.name:443", []*x509.Certificate{cert}, nil); err == nil {
			t.Error("trusted under another name")
		}
		if err := tr.verify("127.0.0.1:443", nil, nil); err == nil {
			t.Error("no certificate is trusted")
		}
	})
	t.Run("bad CA file", func(t *testing.T) {
		for _, f := range []string{write("bad.pem", "rubbish"), filepath.Join(dir, "missing.pem")} {
			if _, err := newTrust(Config{CAFiles: []string{f}}); problem.KindOf(err) != problem.Invalid || !strings.Contains(err.Error(), f) {
				t.Errorf("got %v", err)
			}
		}
	})
}

func TestParseKnownHosts(t *testing.T) {
	one := strings.Repeat("AB", 20)
	two56 := strings.Repeat("cd:", 31) + "cd"
	got, err := parseKnownHosts(strings.NewReader("# comment " + one + "\n\nHost.example:8443 " + colons(one) + "\r\n" +
		"esx1 " + two56 + "\nesx1 " + one + "\n[::1]:443 " + one + "\nfoo\nfoo bar\nfoo " + one + "00\nfoo " + one[:38] + "zz\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"host.example:8443": {one}, "esx1:443": {strings.Repeat("CD", 32), one}, "[::1]:443": {one},
	}
	if len(got) != len(want) {
		t.Errorf("got %v", got)
	}
	for host, w := range want {
		if !slices.Equal(got[host], w) {
			t.Errorf("%s: got %v, want %v", host, got[host], w)
		}
	}
}

func TestFileURL(t *testing.T) {
	for _, tt := range []struct{ raw, connected, want string }{
		{"https://esx1.example/nfc/5-1/disk-0.vmdk", "vc.example", "https://esx1.example/nfc/5-1/disk-0.vmdk"},
		{"https://*/nfc/x", "esx.example", "https://esx.example/nfc/x"},
		{"https://*/nfc/x", "esx.example:8443", "https://esx.example:8443/nfc/x"},
		{"https://*:443/nfc/x", "esx.example:8443", "https://esx.example:443/nfc/x"},
		{"http://*:902/nfc/x", "10.0.0.1", "http://10.0.0.1:902/nfc/x"},
		{"https://*:902/nfc/x", "[fe80::1]:8443", "https://[fe80::1]:902/nfc/x"},
		{"https://*:902/nfc/x", "[fe80::1]", "https://[fe80::1]:902/nfc/x"},
		{"ftp://esx/nfc/x", "h", ""},
		{"/nfc/x", "h", ""},
		{"https:///nfc/x", "h", ""},
		{"https://user@esx/nfc/x", "h", ""},
		{"https://esx:port/nfc/ticket", "h", ""},
		{"", "h", ""},
	} {
		u, err := fileURL(tt.raw, tt.connected)
		switch {
		case tt.want == "" && err == nil:
			t.Errorf("%q: got %s, want an error", tt.raw, u)
		case tt.want == "" && strings.Contains(err.Error(), "ticket"):
			t.Errorf("%q: the error quotes it: %v", tt.raw, err)
		case tt.want != "" && (err != nil || u.String() != tt.want):
			t.Errorf("%q at %q: got %v, %v, want %s", tt.raw, tt.connected, u, err, tt.want)
		}
	}
}
