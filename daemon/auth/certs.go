package auth

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

const (
	// maxPEM bounds a file of certificates or a key, in bytes.
	maxPEM = 4 << 20
	// expirySoon is how long before its end a certificate is warned of.
	expirySoon = 14 * 24 * time.Hour
)

// Certificates is the daemon's side of TLS: its certificate and key, and the
// authorities whose client certificates it takes. The files are read again
// when they change, for connections made from then on.
type Certificates struct{ live *live[*tls.Config] }

// LoadCertificates reads the PEM files; clientCA may be empty, then client
// certificates are not asked for. The error is a problem.Invalid. Log hears of
// reloads, and of certificates that end soon; nil discards.
func LoadCertificates(cert, key, clientCA string, log *slog.Logger) (*Certificates, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	files := []string{cert, key}
	if clientCA != "" {
		files = append(files, clientCA)
	}
	l, err := newLive("certificates", log, func() (*tls.Config, [sha256.Size]byte, error) {
		return readCertificates(cert, key, clientCA, log)
	}, files...)
	if err != nil {
		return nil, err
	}
	return &Certificates{l}, nil
}

// Current gives the configuration for a connection that is made now. It must
// not be changed.
func (c *Certificates) Current() *tls.Config { return c.live.get() }

// Serves reports whether the certificate is valid for a host's name or
// address, wherever that leads.
func (c *Certificates) Serves(host string) bool {
	return c.live.get().Certificates[0].Leaf.VerifyHostname(host) == nil
}

// Reload reads the files again. On an error what was read before stays in
// force.
func (c *Certificates) Reload() error { return c.live.again() }

func readCertificates(cert, key, clientCA string, log *slog.Logger) (*tls.Config, [sha256.Size]byte, error) {
	h := sha256.New()
	var sum [sha256.Size]byte
	read := func(what, file string) ([]byte, error) {
		data, err := readPEM(file)
		if err != nil {
			return nil, problem.New(problem.Invalid, fmt.Sprintf("read %s %s", what, file), err, "name a file in PEM form that the daemon's user can read")
		}
		fmt.Fprintf(h, "%d\n", len(data))
		h.Write(data)
		return data, nil
	}
	certPEM, err := read("TLS certificate", cert)
	if err != nil {
		return nil, sum, err
	}
	keyPEM, err := read("TLS key", key)
	if err != nil {
		return nil, sum, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, sum, problem.New(problem.Invalid, fmt.Sprintf("use TLS certificate %s with key %s", cert, key), err,
			"give the certificate with its chain and the key that belongs to it, in PEM form")
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, Certificates: []tls.Certificate{pair}}
	if clientCA != "" {
		caPEM, err := read("client CA", clientCA)
		if err != nil {
			return nil, sum, err
		}
		config.ClientCAs = x509.NewCertPool()
		if !config.ClientCAs.AppendCertsFromPEM(caPEM) {
			return nil, sum, problem.New(problem.Invalid, "read client CA "+clientCA, errors.New("it holds no certificate in PEM form"), "give the CA's certificates in PEM form")
		}
		// Not required here: a client may show a token instead, and one that
		// shows neither deserves an answer that says so.
		config.ClientAuth = tls.VerifyClientCertIfGiven
	}
	if left := time.Until(pair.Leaf.NotAfter); left < expirySoon || time.Now().Before(pair.Leaf.NotBefore) {
		log.Warn("the TLS certificate is not valid now or ends soon", slog.String("file", cert),
			slog.Time("notBefore", pair.Leaf.NotBefore), slog.Time("notAfter", pair.Leaf.NotAfter))
	}
	h.Sum(sum[:0])
	return config, sum, nil
}

func readPEM(file string) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0) // not waiting for a pipe's writer
	if err != nil {
		return nil, plain(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err != nil {
		return nil, plain(err)
	}
	if len(data) > maxPEM {
		return nil, fmt.Errorf("it is larger than %d bytes", maxPEM)
	}
	return data, nil
}
