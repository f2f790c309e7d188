package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// soapFault is a fault as it comes off the wire: a value, not a pointer.
func soapFault(text string, detail types.AnyType) error {
	f := &soap.Fault{Code: "ServerFaultCode", String: text}
	f.Detail.Fault = detail
	return soap.WrapSoapFault(f)
}

func TestFailure(t *testing.T) {
	dial := &url.Error{Op: "Post", URL: "https://vc/sdk", Err: &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}}
	for _, tt := range []struct {
		name string
		err  error
		kind problem.Kind
		is   error
		says string
	}{
		{"login", soapFault("Cannot complete login due to an incorrect user name or password.", types.InvalidLogin{}), problem.Unauthorized, nil, "GOVC_PASSWORD"},
		{"not authenticated", soapFault("The session is not authenticated.", types.NotAuthenticated{}), problem.Unauthorized, nil, "session"},
		{"permission", soapFault("Permission to perform this operation was denied.", types.NoPermission{PrivilegeId: "VApp.Export"}), problem.Unauthorized, nil, "VApp.Export"},
		{"permission, new style", soapFault("denied", types.NoPermission{MissingPrivileges: []types.NoPermissionEntityPrivileges{{PrivilegeIds: []string{"VApp.Export"}}}}), problem.Unauthorized, nil, "VApp.Export"},
		{"powered on", soapFault("", types.InvalidPowerState{ExistingState: types.VirtualMachinePowerStatePoweredOn}), problem.Conflict, nil, "poweredOn"},
		{"task in progress", soapFault("busy", types.TaskInProgress{}), problem.Conflict, ErrBusy, "wait"},
		{"state", soapFault("state", types.InvalidState{}), problem.Conflict, ErrBusy, ""},
		{"file fault", soapFault("", types.FileFault{File: "[ds] a.iso"}), problem.Conflict, nil, "remove_cdrom"},
		{"file not found", &taskError{&types.LocalizedMethodFault{Fault: &types.FileNotFound{FileFault: types.FileFault{File: "[ds] a.iso"}}}}, problem.Conflict, nil, "[ds] a.iso"},
		{"file not found as a value", soapFault("", types.FileNotFound{FileFault: types.FileFault{File: "[ds] a.iso"}}), problem.Conflict, nil, "[ds] a.iso"},
		{"nested", &taskError{&types.LocalizedMethodFault{Fault: &types.SystemError{RuntimeFault: types.RuntimeFault{MethodFault: types.MethodFault{
			FaultCause: &types.LocalizedMethodFault{Fault: &types.FileNotFound{}}}}}}}, problem.Conflict, nil, "remove_cdrom"},
		{"not found", soapFault("", types.ManagedObjectNotFound{Obj: types.ManagedObjectReference{Type: "VirtualMachine", Value: "vm-7"}}), problem.NotFound, nil, "vm-7"},
		{"host", soapFault("", types.HostNotConnected{}), problem.Unreachable, nil, "ESXi"},
		{"licence", soapFault("", types.RestrictedVersion{}), problem.Failed, nil, "licence"},
		{"unknown fault", soapFault("", nil), problem.Failed, nil, ""},
		{"any fault", soapFault("A general system error occurred", types.SystemError{}), problem.Failed, nil, "general system error"},
		{"dial", dial, problem.Unreachable, nil, "GOVC_URL"},
		{"name", &url.Error{Op: "Post", URL: "x", Err: &net.DNSError{Err: "no such host", Name: "vc"}}, problem.Unreachable, nil, "GOVC_URL"},
		{"certificate", &url.Error{Op: "Post", URL: "x", Err: &CertificateError{Host: "vc:443", SHA1: "AA:BB", SHA256: "CC", Err: errors.New("x")}}, problem.Unreachable, nil, "vc:443 AA:BB"},
		{"cut", &url.Error{Op: "Post", URL: "x", Err: io.ErrUnexpectedEOF}, problem.Unreachable, nil, ""},
		{"late", &url.Error{Op: "Post", URL: "x", Err: context.DeadlineExceeded}, problem.Unreachable, nil, "in time"},
		{"cancelled", &url.Error{Op: "Post", URL: "x", Err: context.Canceled}, problem.Cancelled, context.Canceled, ""},
		{"closed", ErrClosed, problem.Failed, ErrClosed, ""},
		{"joined", fmt.Errorf("%w: %w", errRound, reason(soapFault("", types.NoPermission{PrivilegeId: "System.View"}))), problem.Unauthorized, errRound, "System.View"},
		{"ours", errors.New("the host offers no files"), problem.Failed, nil, "no files"},
		{"done already", problem.New(problem.NotFound, "find", errors.New("x"), ""), problem.NotFound, nil, "find: x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := failure("do it", tt.err)
			p, ok := errors.AsType[*problem.Error](err)
			if !ok {
				t.Fatalf("got %T", err)
			}
			if p.Kind != tt.kind {
				t.Errorf("kind %d, want %d: %v", p.Kind, tt.kind, err)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v is not %v", err, tt.is)
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%q does not say %q", err, tt.says)
			}
			if strings.Contains(err.Error(), "ServerFaultCode") || strings.Contains(err.Error(), "Post ") {
				t.Errorf("%q is about the wire", err)
			}
			if tt.is != ErrBusy && errors.Is(err, ErrBusy) {
				t.Errorf("%v is busy", err)
			}
		})
	}
	if failure("x", nil) != nil {
		t.Error("nil became an error")
	}
}
