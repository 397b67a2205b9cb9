package api_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

func TestNoRoute(t *testing.T) {
	t.Parallel()
	m, _ := newMux(api.Config{Authenticate: func(*http.Request) (reqctx.Request, error) {
		return reqctx.Request{}, fault.Unauthenticated
	}})
	wantFault(t, send(t, m, "GET", "/nothing", ""), 404, "itemNotFound", "The resource could not be found.")
	open, _ := newMux(api.Config{})
	wantFault(t, send(t, open, "GET", "/disks/1%20", ""), 404, "itemNotFound", "The resource could not be found.") // the path is not /disks/1
	// ServeMux would redirect a path with an empty element or a dot to another path. So a client that has left out an id would reach another resource.
	for _, method := range []string{"GET", "HEAD", "POST", "DELETE"} {
		for _, path := range []string{"//disks", "/disks//1", "//disks/1?fields=id", "/disks/./1", "/other/../disks/1", "//nothing", "//"} {
			w := send(t, open, method, path, "")
			if got := w.Header().Get("Location"); got != "" {
				t.Errorf("%s %s: redirected to %s", method, path, got)
			}
			wantFault(t, w, 404, "itemNotFound", "The resource could not be found.")
		}
	}
	w := send(t, m, "PATCH", "/disks/1", "")
	wantFault(t, w, 405, "badMethod", "The method PATCH is not allowed for this resource.")
	if got := w.Header().Get("Allow"); got != "DELETE, GET, HEAD" {
		t.Errorf("Allow = %q", got)
	}
}

// private returns an error of the form that package db returns.
func private(c fault.Code) error {
	return &fault.Error{Code: c, Private: true, Msg: "Error 1045 (28000): Access denied for user 'volume'@'10.0.0.7'"}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	const (
		cause       = " The service's log has the cause under request id ID."
		unavailable = "The service is not available for the moment." + cause
		late        = "The service did not get an answer in time; the request may have been executed." + cause
		broken      = "Unexpected API Error." + cause
	)
	noHost := fault.Sentinel(fault.Exhausted, "NoValidHost", "no valid host")
	tests := []struct {
		name       string
		err        error
		wantStatus int
		wantName   string
		wantMsg    string
	}{
		{"invalid", fault.New(fault.Invalid, "bad %d", 1), 400, "badRequest", "bad 1"},
		{"unauthenticated", fault.New(fault.Unauthenticated, "who?"), 401, "unauthorized", "who?"},
		{"denied", fault.New(fault.Denied, "no"), 403, "forbidden", "no"},
		{"not found", fault.New(fault.NotFound, "Disk 1 could not be found."), 404, "itemNotFound", "Disk 1 could not be found."},
		{"conflict", fault.New(fault.Conflict, "taken"), 409, "conflictingRequest", "taken"},
		{"precondition", fault.New(fault.Precondition, "busy"), 409, "conflictingRequest", "busy"},
		{"exhausted", noHost, 403, "forbidden", "no valid host"},
		{"plain text around a fault is for the log", fmt.Errorf("on n1: %w", noHost), 403, "forbidden", "no valid host"},
		{"the text of a fault around a fault is for the client", fault.New(fault.NotFound, "gone: %w", noHost), 404, "itemNotFound", "gone: no valid host"},
		{"unimplemented", fault.New(fault.Unimplemented, "later"), 501, "notImplemented", "later"},
		{"unavailable", fault.New(fault.Unavailable, "no bus at 10.0.0.7"), 503, "diskFault", unavailable},
		{"unavailable, with a text for users", fault.WithUser(fault.New(fault.Unavailable, "no bus at 10.0.0.7"), "We move house."), 503, "diskFault", "We move house."},
		{"internal, with a text for users", fault.WithUser(fault.New(fault.Internal, "no bus at 10.0.0.7"), "We move house."), 500, "diskFault", broken},
		{"unavailable, through a plain error and a peer", fmt.Errorf("call x.y: %w", fault.Remote(*fault.From(fmt.Errorf("n1: %w", fault.New(fault.Unavailable, "no bus at 10.0.0.7"))))), 503, "diskFault", unavailable},
		{"timeout", context.DeadlineExceeded, 504, "diskFault", late},
		{"unknown", fault.New(fault.Unknown, "lost"), 504, "diskFault", late},
		{"canceled", context.Canceled, 499, "diskFault", "Canceled"},
		{"own status", api.WithStatus(410, errors.New("gone for good")), 410, "diskFault", "gone for good"},
		{"own status of a fault", fmt.Errorf("x: %w", api.WithStatus(429, fault.New(fault.Exhausted, "slower"))), 429, "tooManyRequests", "slower"},
		{"remote", fault.Remote(fault.Error{Code: fault.NotFound, Msg: "no such disk"}), 404, "itemNotFound", "no such disk"},
		{"remote, with a text around the fault", fault.Remote(*fault.From(fmt.Errorf("select: %w", noHost))), 403, "forbidden", "no valid host"},
		{"private Unauthenticated", private(fault.Unauthenticated), 503, "diskFault", unavailable},
		{"private Denied", private(fault.Denied), 503, "diskFault", unavailable},
		{"private Exhausted", private(fault.Exhausted), 503, "diskFault", unavailable},
		{"private Unavailable", private(fault.Unavailable), 503, "diskFault", unavailable},
		{"private Unknown", private(fault.Unknown), 504, "diskFault", late},
		{"private Conflict", private(fault.Conflict), 500, "diskFault", broken},
		{"private NotFound", private(fault.NotFound), 500, "diskFault", broken},
		{"private Invalid", private(fault.Invalid), 500, "diskFault", broken},
		{"private Precondition", private(fault.Precondition), 500, "diskFault", broken},
		{"private, of a peer", fault.Remote(*fault.From(fmt.Errorf("select: %w", private(fault.Denied)))), 503, "diskFault", unavailable},
		{"private, translated", fault.New(fault.Conflict, "disk a exists: %w", private(fault.Conflict)), 409, "conflictingRequest", "disk a exists: internal error"},
		{"private, with a text for users", fault.WithUser(private(fault.Conflict), "Disk a exists."), 409, "conflictingRequest", "Disk a exists."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m, out := failing(api.Config{FaultName: "diskFault"}, tt.err)
			w := send(t, m, "POST", "/x", "")
			wantFault(t, w, tt.wantStatus, tt.wantName, strings.ReplaceAll(tt.wantMsg, "ID", w.Header().Get("X-Openstack-Request-Id")))
			if strings.Contains(w.Body.String(), "10.0.0.7") {
				t.Errorf("the reply has a detail of the service: %s", w.Body)
			}
			if got := w.Header().Get("Retry-After"); (got != "") != (tt.wantStatus == 503) {
				t.Errorf("Retry-After = %q", got)
			}
			// A client can cause 501, so it is logged as DEBUG.
			if logged := strings.Contains(out.String(), `level=ERROR msg="request failed"`); logged != (tt.wantStatus >= 500 && tt.wantStatus != 501) {
				t.Errorf("logged as failed: %v\n%s", logged, out)
			}
		})
	}
}

// TestUnknownRead: a request that only reads may be repeated, so it is answered with 503 if it is not known whether it was executed.
func TestUnknownRead(t *testing.T) {
	t.Parallel()
	for _, err := range []error{fault.New(fault.Unknown, "lost"), private(fault.Unknown)} {
		m, _ := failing(api.Config{}, err)
		for method, want := range map[string]int{"GET": 503, "HEAD": 503, "POST": 504} {
			if w := send(t, m, method, "/x", ""); w.Code != want || (w.Header().Get("Retry-After") != "") != (want == 503) {
				t.Errorf("%s: %d, Retry-After %q, want %d", method, w.Code, w.Header().Get("Retry-After"), want)
			}
		}
	}
}

// TestInternalErrorsStayInside: the reply has the request's id, and the cause is only in the log.
func TestInternalErrorsStayInside(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{
		"plain":  errors.New("dial tcp 10.0.0.7: refused"),
		"fault":  fault.New(fault.Internal, "dial tcp 10.0.0.7: refused"),
		"remote": fault.Remote(fault.Error{Msg: "dial tcp 10.0.0.7: refused"}),
	} {
		m, out := failing(api.Config{}, err)
		w := send(t, m, "GET", "/x", "")
		id := w.Header().Get("X-Openstack-Request-Id")
		wantFault(t, w, 500, "fault", "Unexpected API Error. The service's log has the cause under request id "+id+".")
		if line, _, _ := strings.Cut(out.String(), "\n"); !strings.Contains(line, "10.0.0.7") || !strings.Contains(line, "request_id="+id) {
			t.Errorf("%s: log line %q lacks the cause or the id", name, line)
		}
	}
}

func TestPanic(t *testing.T) {
	t.Parallel()
	m, out := newMux(api.Config{})
	api.Handle(m, "GET /panic", func(context.Context, *api.Request[api.None]) (api.None, error) { panic("argh") })
	api.Handle(m, "GET /nojson", func(context.Context, *api.Request[api.None]) (any, error) { return make(chan int), nil })
	for range 2 { // the second request shows that the process still runs
		if w := send(t, m, "GET", "/panic", ""); w.Code != 500 || strings.Contains(w.Body.String(), "argh") {
			t.Errorf("panic: %d %s", w.Code, w.Body)
		}
	}
	if w := send(t, m, "GET", "/nojson", ""); w.Code != 500 {
		t.Errorf("reply that JSON cannot express: %d %s", w.Code, w.Body)
	}
	for _, want := range []string{"panic: argh", "errors_test.go", "encode reply", "status=500"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("log lacks %q:\n%s", want, out)
		}
	}
}
