package lab

import (
	"testing"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
)

// newClient makes a client that has not logged in, and ends its connections
// with the test.
func newClient(t testing.TB, sc *soap.Client) (*govmomi.Client, error) {
	t.Helper()
	t.Cleanup(sc.CloseIdleConnections)
	vc, err := vim25.NewClient(t.Context(), sc)
	if err != nil {
		return nil, err
	}
	return &govmomi.Client{Client: vc, SessionManager: session.NewManager(vc)}, nil
}
