// Package auth says who a client of the daemon is and what it may do: tokens
// kept as hashes in a file, client certificates, the peer of a unix socket,
// roles, and how often each client may ask. It holds the daemon's TLS
// certificate, too, because the two are reloaded alike. It knows neither routes
// nor jobs.
package auth

import (
	"fmt"
	"net"
	"net/netip"
)

// Role is what a client may do.
type Role string

// The roles. An operator may do everything; a viewer may look, and change
// nothing.
const (
	Viewer   Role = "viewer"
	Operator Role = "operator"
)

// ParseRole reads a role's name.
func ParseRole(s string) (Role, error) {
	switch r := Role(s); r {
	case Viewer, Operator:
		return r, nil
	}
	return "", fmt.Errorf("the role is %.40q, want %s or %s", s, Viewer, Operator)
}

// May reports whether a client with this role may do what asks for need. The
// zero role may do nothing.
func (r Role) May(need Role) bool {
	switch need {
	case Viewer:
		return r == Viewer || r == Operator
	case Operator:
		return r == Operator
	}
	return false
}

// Identity is an authenticated client.
type Identity struct {
	// Who names the client in the audit log: "token:ci", "cert:web01",
	// "uid:1000", or "anonymous" where nothing is asked for.
	Who string
	// ID tells clients of one name apart, for instance a token's id. It is
	// what the rate limit counts by and never a secret.
	ID   string
	Role Role
}

// Address gives what an unauthenticated client is counted by: its IP address,
// and of IPv6 the /64 network, which is what one customer has.
func Address(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return remote
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}
