package auth

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Why a request is not let in. Neither says which of several reasons it was
// more exactly than its client may know.
var (
	// ErrMissing: the request shows nothing to tell who sends it.
	ErrMissing = errors.New("the request carries no token")
	// ErrUnknown: it shows something that is not valid.
	ErrUnknown = errors.New("the token or certificate is unknown or has expired")
)

// Options say how clients are told apart.
type Options struct {
	// TokenFile holds the tokens' hashes; empty means that there are none.
	TokenFile string
	// ClientCerts says that TLS verifies client certificates. One that is
	// verified makes an operator, or a viewer when its common name is in
	// Viewers.
	ClientCerts bool
	Viewers     []string
	Logger      *slog.Logger // nil discards
	// Audit gets a line for each token that comes or goes; nil discards.
	Audit *slog.Logger
}

// Authenticator tells who sends a request. Its methods are safe for
// concurrent use.
type Authenticator struct {
	opts   Options
	tokens *live[[]Token]
}

// NewAuthenticator reads the token file. One that does not exist (yet) lets
// nobody in; one that cannot be trusted is an error.
func NewAuthenticator(opts Options) (*Authenticator, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Audit == nil {
		opts.Audit = slog.New(slog.DiscardHandler)
	}
	a := &Authenticator{opts: opts}
	if opts.TokenFile == "" {
		return a, nil
	}
	var err error
	a.tokens, err = newLive("tokens", opts.Logger, func() ([]Token, [sha256.Size]byte, error) {
		tokens, err := ListTokens(opts.TokenFile)
		if err != nil {
			return nil, [sha256.Size]byte{}, err
		}
		data, err := formatTokens(tokens)
		return tokens, sha256.Sum256(data), err
	}, opts.TokenFile)
	if err != nil {
		return nil, err
	}
	a.tokens.changed = a.audit
	return a, nil
}

// audit says which tokens came and went. Who did it is whoever may write the
// file: `hyper2kvmd token` is another process.
func (a *Authenticator) audit(before, now []Token) {
	say := func(action string, list, other []Token) {
		for _, t := range list {
			if !slices.Contains(other, t) {
				a.opts.Audit.Info("audit", slog.String("who", "file:"+a.opts.TokenFile), slog.String("action", action),
					slog.String("target", "token:"+t.Name), slog.String("id", t.ID), slog.String("role", string(t.Role)), slog.String("outcome", "done"))
			}
		}
	}
	say("remove token", before, now)
	say("add token", now, before)
}

// Required reports whether a request over the network must show who sends it.
func (a *Authenticator) Required() bool { return a.tokens != nil || a.opts.ClientCerts }

// Tokens is how many tokens are known, expired ones included.
func (a *Authenticator) Tokens() int {
	if a.tokens == nil {
		return 0
	}
	return len(a.tokens.get())
}

// Reload reads the token file again. On an error the tokens known before stay
// in force.
func (a *Authenticator) Reload() error {
	if a.tokens == nil {
		return nil
	}
	return a.tokens.again()
}

// Identify tells who sends a request, or gives ErrMissing or ErrUnknown. The
// peer of the unix socket has shown by opening it that its file's permissions
// let it. A token that is sent counts before a certificate.
func (a *Authenticator) Identify(r *http.Request) (Identity, error) {
	if p, ok := peerOf(r.Context()); ok {
		return p.identity(), nil
	}
	if values := r.Header.Values("Authorization"); len(values) > 0 && a.Required() {
		if len(values) > 1 {
			return Identity{}, ErrUnknown
		}
		return a.token(values[0])
	}
	if a.opts.ClientCerts && r.TLS != nil && len(r.TLS.VerifiedChains) > 0 && len(r.TLS.VerifiedChains[0]) > 0 {
		c := r.TLS.VerifiedChains[0][0]
		if time.Now().After(c.NotAfter) {
			return Identity{}, ErrUnknown // ended while the connection stood
		}
		return a.certificate(c), nil
	}
	if a.Required() {
		return Identity{}, ErrMissing
	}
	return Identity{Who: "anonymous", ID: "address:" + Address(r.RemoteAddr), Role: Operator}, nil
}

func (a *Authenticator) token(header string) (Identity, error) {
	scheme, secret, _ := strings.Cut(header, " ")
	secret = strings.TrimSpace(secret)
	if !strings.EqualFold(scheme, "Bearer") || secret == "" || len(secret) > maxSecret || a.tokens == nil {
		return Identity{}, ErrUnknown
	}
	t, ok := find(a.tokens.get(), secret)
	if !ok || t.Expired(time.Now()) {
		return Identity{}, ErrUnknown
	}
	return Identity{Who: "token:" + t.Name, ID: "token:" + t.ID, Role: t.Role}, nil
}

// certificate names a client by the common name of its verified certificate,
// or by its serial number when it has none.
func (a *Authenticator) certificate(c *x509.Certificate) Identity {
	name := c.Subject.CommonName
	if name == "" && c.SerialNumber != nil {
		name = fmt.Sprintf("serial %x", c.SerialNumber)
	}
	sum := sha256.Sum256(c.Raw)
	id := Identity{Who: "cert:" + name, ID: "cert:" + hex.EncodeToString(sum[:8]), Role: Operator}
	if slices.Contains(a.opts.Viewers, c.Subject.CommonName) {
		id.Role = Viewer
	}
	return id
}
