package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"

	"github.com/hyper2kvm/hyper2kvm/internal/problem"
)

// Errors to test for with errors.Is.
var (
	// ErrLeaseLost means that the host no longer honours a lease.
	ErrLeaseLost = errors.New("the lease is lost")
	// ErrBusy means that another task or lease occupies the VM.
	ErrBusy = errors.New("the VM is busy")
	// ErrClosed means that the session was ended by Close.
	ErrClosed = errors.New("the session is closed")
)

// taskError is a fault that did not come as a SOAP fault: a task's or a
// lease's.
type taskError struct{ f *types.LocalizedMethodFault }

func (e *taskError) Error() string {
	if e.f.LocalizedMessage != "" {
		return e.f.LocalizedMessage
	}
	return faultName(e.f.Fault)
}

// Fault is what package fault looks for.
func (e *taskError) Fault() types.BaseMethodFault { return e.f.Fault }

func faultName(f types.BaseMethodFault) string {
	if f == nil {
		return "unknown fault"
	}
	t := reflect.TypeOf(f)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Name()
}

// isFault reports whether err holds a fault of type F: a pointer to a fault's
// type, or one of govmomi's Base interfaces for it and its subtypes.
func isFault[F any](err error) bool {
	_, ok := asFault[F](err)
	return ok
}

func asFault[F any](err error) (F, bool) {
	var f F
	found := carrier(err, func(c faultCarrier) bool {
		_, ok := fault.As(c, &f)
		return ok
	})
	return f, found
}

// faultCarrier is an error that holds a fault: govmomi's own, and taskError.
type faultCarrier interface {
	error
	Fault() types.BaseMethodFault
}

// carrier looks through everything that err wraps; package fault follows only
// the first of several.
func carrier(err error, f func(faultCarrier) bool) bool {
	if c, ok := err.(faultCarrier); ok && f(c) { //nolint:errorlint // this is the walk itself
		return true
	}
	switch u := err.(type) { //nolint:errorlint // see above
	case interface{ Unwrap() error }:
		return carrier(u.Unwrap(), f)
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(u.Unwrap(), func(e error) bool { return carrier(e, f) })
	}
	return false
}

// answered reports whether err is a fault of whatever type, in contrast to a
// call that got no answer.
func answered(err error) bool {
	return carrier(err, func(faultCarrier) bool { return true })
}

// gone reports whether err says that the object itself no longer exists.
func gone(err error, ref types.ManagedObjectReference) bool {
	f, ok := asFault[*types.ManagedObjectNotFound](err)
	return ok && f.Obj == ref
}

// reason is an error without the noise of the wire: SOAP's fault code and
// net/http's URL.
func reason(err error) error {
	if soap.IsSoapFault(err) {
		f := soap.ToSoapFault(err)
		if text := strings.TrimSpace(f.String); text != "" {
			return &named{text, err}
		}
		if v, ok := asFault[types.BaseMethodFault](err); ok {
			return &named{faultName(v), err}
		}
		return &named{"the server failed without saying why", err}
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}

// named gives an error another text.
type named struct {
	text string
	err  error
}

func (e *named) Error() string { return e.text }
func (e *named) Unwrap() error { return e.err }

// failure turns an error of a call into a *problem.Error that says what failed
// and what to do. An error that is one already stays as it is.
func failure(what string, err error) error {
	if err == nil {
		return nil
	}
	if p, ok := errors.AsType[*problem.Error](err); ok {
		return p
	}
	kind, advice, why := classify(err)
	return problem.New(kind, what, why, advice)
}

// classify holds all that is known of vSphere's faults. More special types
// come first: InvalidPowerState is an InvalidState, FileNotFound a FileFault.
func classify(err error) (kind problem.Kind, advice string, why error) {
	why = reason(err)
	if ce, ok := errors.AsType[*CertificateError](err); ok {
		return problem.Unreachable, "check that thumbprint on the host, then trust it: add the line \"" + ce.Host + " " + ce.SHA1 + "\" to the file named by GOVC_TLS_KNOWN_HOSTS, or name its authority's certificate in GOVC_TLS_CA_CERTS; GOVC_INSECURE=1 trusts anybody", ce
	}
	if answered(err) {
		return classifyFault(err, why)
	}
	switch {
	case errors.Is(err, ErrClosed):
		return problem.Failed, "", why
	case errors.Is(err, context.Canceled):
		return problem.Cancelled, "", why
	}
	// No answer at all, or one that is not SOAP.
	if ne, ok := errors.AsType[*net.OpError](err); ok && ne.Op == "dial" {
		return problem.Unreachable, "check host and port in GOVC_URL, and that nothing in between blocks them", why
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return problem.Unreachable, "check the host in GOVC_URL", why
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return problem.Unreachable, "try again, or look at the server's load", errors.New("the server did not answer in time")
	}
	if silent(err) {
		return problem.Unreachable, "check that GOVC_URL is the address of a vCenter or ESXi host, and that it is up", why
	}
	return problem.Failed, "", why
}

// silent reports whether a call got no answer, or one that is no SOAP.
func silent(err error) bool {
	if _, ok := errors.AsType[*url.Error](err); ok {
		return true
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	if _, ok := errors.AsType[*xml.SyntaxError](err); ok {
		return true
	}
	if _, ok := errors.AsType[xml.UnmarshalError](err); ok {
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

func classifyFault(err, why error) (kind problem.Kind, advice string, because error) {
	if isFault[*types.InvalidLogin](err) {
		return problem.Unauthorized, "check user name and password (GOVC_USERNAME, GOVC_PASSWORD)", why
	}
	if isFault[*types.NotAuthenticated](err) {
		return problem.Unauthorized, "the session ended and could not be renewed; try again", why
	}
	if f, ok := asFault[*types.NoPermission](err); ok {
		advice = "give the user the needed role on that object"
		if p := privileges(f); p != "" {
			why = fmt.Errorf("the privilege %s is missing: %w", p, why)
			advice = "give the user a role with " + p + " on that object"
		}
		return problem.Unauthorized, advice, why
	}
	if f, ok := asFault[*types.InvalidPowerState](err); ok {
		if f.ExistingState != "" {
			why = fmt.Errorf("the VM is %s: %w", f.ExistingState, why)
		}
		return problem.Conflict, "shut the VM down (-shutdown), or export from a snapshot (-snapshot)", why
	}
	if isFault[*types.TaskInProgress](err) {
		return problem.Conflict, "wait for the VM's running task or export to end, then try again", fmt.Errorf("%w: %w", ErrBusy, why)
	}
	if f, ok := asFault[types.BaseFileFault](err); ok {
		if file := f.GetFileFault().File; file != "" {
			why = fmt.Errorf("file %q: %w", file, why)
		}
		return problem.Conflict, "an image in a CD-ROM drive may be gone: remove the drive (-remove-cdrom; remove_cdrom in a job file), or check the datastore", why
	}
	if isFault[*types.InvalidState](err) {
		return problem.Conflict, "wait until nothing else works on the VM, then try again", fmt.Errorf("%w: %w", ErrBusy, why)
	}
	if f, ok := asFault[*types.ManagedObjectNotFound](err); ok {
		return problem.NotFound, "list the inventory again", fmt.Errorf("%s %s does not exist: %w", f.Obj.Type, f.Obj.Value, why)
	}
	if isFault[*types.HostNotConnected](err) || isFault[*types.HostNotReachable](err) {
		return problem.Unreachable, "the VM's ESXi host is disconnected from vCenter; bring it back first", why
	}
	if isFault[*types.NotSupported](err) || isFault[*types.MethodNotFound](err) || isFault[*types.RestrictedVersion](err) {
		return problem.Failed, "this server, its licence or this VM does not allow it", why
	}
	return problem.Failed, "", why
}

func privileges(f *types.NoPermission) string {
	var ids []string
	if f.PrivilegeId != "" {
		ids = append(ids, f.PrivilegeId)
	}
	for _, e := range f.MissingPrivileges {
		for _, id := range e.PrivilegeIds {
			if id != f.PrivilegeId {
				ids = append(ids, id)
			}
		}
	}
	return strings.Join(ids, ", ")
}
