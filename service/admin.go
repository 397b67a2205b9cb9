package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/armature-go/armature/fault"
)

// AdminConfig configures [App.Admin]. Addr is required.
type AdminConfig struct {
	// Addr is the address to listen on, in the form of [HTTPConfig].Addr: a loopback address or a Unix
	// socket. The admin listener does not authenticate its clients, and they can run loops, read profiles
	// and set the log level.
	Addr string
	// Hosts are the names and addresses by which clients on other machines reach the listener, such as
	// "node1.example.org". Default: none. An Addr that is not a loopback address is valid only with Hosts:
	// set them only where a firewall lets only operators through.
	// A request over TCP is refused if its Host header names neither one of Hosts nor this machine ("localhost",
	// 127.0.0.1, [::1]). So a web page cannot reach the listener through a DNS name of its own.
	Hosts []string
	// Metrics serves /metrics. Default: /metrics does not exist.
	Metrics http.Handler
	// Config returns the value that /debug/config shows as JSON, such as each option's value and its
	// origin, without secrets. It must be safe for concurrent use. Default: an empty object.
	Config func() any
	// Level is the log level that /debug/loglevel shows and sets. Default: GET and PUT are answered with 501.
	Level *slog.LevelVar
}

// Validate returns Invalid if Addr is malformed, or if other machines can reach it and Hosts is empty.
// The Start of the part that [App.Admin] returns does the same check.
func (c AdminConfig) Validate() error {
	if strings.HasPrefix(c.Addr, "unix:") {
		return nil
	}
	host, err := splitAddr(c.Addr)
	if err != nil {
		return fault.New(fault.Invalid, "admin address %q: %w; write 127.0.0.1:9774 or unix:/run/admin.sock", c.Addr, err)
	}
	if len(c.Hosts) == 0 && !isLoopback(host) {
		return fault.New(fault.Invalid, "admin address %q can be reached from other machines, and clients are not asked for an identity: "+
			"listen on 127.0.0.1, [::1] or unix:/path, or name the hosts by which other machines may reach it", c.Addr)
	}
	return nil
}

// isLoopback reports whether a host is a loopback address or "localhost".
func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback() || strings.EqualFold(host, "localhost")
}

// Admin returns a part with an HTTP listener for operators. By default only clients on this machine can reach it:
//
//	GET  /livez                 200 while the process serves requests
//	GET  /readyz                200 or 503, with the name and the error of each check
//	GET  /metrics               for Prometheus
//	GET  /debug/inflight        the running work, the oldest first
//	GET  /debug/config          each option's value and its origin
//	GET  /debug/loops           the periodic loops; POST /debug/loops/{name}/run calls one now
//	GET  /debug/loglevel        the log level; PUT {"level": "debug"} sets it
//	GET  /debug/report          the report that SIGUSR2 writes
//	GET  /debug/pprof/          profiles
//	POST /debug/reload          reloads, as SIGHUP does
//
// Replies are JSON, except metrics, the report and profiles. An error is {"error": text}. Add the part first: then it
// answers before the other parts have started, and while they drain.
func (a *App) Admin(cfg AdminConfig) *HTTPPart {
	m := http.NewServeMux()
	m.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		replyJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	m.HandleFunc("GET /readyz", a.serveReadiness)
	if cfg.Metrics != nil {
		m.Handle("GET /metrics", cfg.Metrics)
	}
	m.HandleFunc("GET /debug/inflight", func(w http.ResponseWriter, _ *http.Request) { replyJSON(w, http.StatusOK, a.inflight.List()) })
	m.HandleFunc("GET /debug/config", func(w http.ResponseWriter, _ *http.Request) {
		var v any = struct{}{}
		if cfg.Config != nil {
			v = cfg.Config()
		}
		replyJSON(w, http.StatusOK, v)
	})
	m.HandleFunc("GET /debug/loops", func(w http.ResponseWriter, _ *http.Request) { replyJSON(w, http.StatusOK, a.Loops()) })
	m.HandleFunc("POST /debug/loops/{name}/run", a.serveLoopCall)
	m.HandleFunc("GET /debug/loglevel", func(w http.ResponseWriter, _ *http.Request) { showLevel(w, cfg.Level) })
	m.HandleFunc("PUT /debug/loglevel", func(w http.ResponseWriter, r *http.Request) { a.serveLevel(w, r, cfg.Level) })
	m.HandleFunc("GET /debug/report", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_ = a.Report(r.Context(), w) // an error means that the client has closed the connection
	})
	m.HandleFunc("POST /debug/reload", func(w http.ResponseWriter, r *http.Request) {
		if err := a.Reload(context.WithoutCancel(r.Context())); err != nil {
			replyError(w, err)
			return
		}
		replyJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	m.HandleFunc("GET /debug/pprof/", pprof.Index)
	m.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	m.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	m.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	m.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	p := HTTP(cfg.Addr, cfg.guard(m))
	p.validate = cfg.Validate
	return p
}

// guard refuses requests that a web page in a browser on this machine could send. A browser sends the
// page's origin in the Origin header. If the page's own DNS name points to this machine, the browser may send no Origin,
// but that name is in the Host header.
func (c AdminConfig) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = strings.Trim(host, "[]")
		known := func(h string) bool { return strings.EqualFold(h, host) }
		switch {
		case r.Header.Get("Origin") != "":
			replyError(w, fault.New(fault.Denied, "the request has the header Origin: the admin listener does not answer web pages"))
		case !strings.HasPrefix(c.Addr, "unix:") && !isLoopback(host) && !slices.ContainsFunc(c.Hosts, known):
			replyError(w, fault.New(fault.Denied, "the Host header %q does not name the admin listener: use its address, or add the name to its hosts", r.Host))
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// checkView is a check in the reply of /readyz.
type checkView struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Error  string `json:"error,omitempty"`
	TookMS int64  `json:"took_ms"`
}

// serveReadiness answers GET /readyz.
func (a *App) serveReadiness(w http.ResponseWriter, r *http.Request) {
	reply := struct {
		Status string      `json:"status"`
		Phase  string      `json:"phase"`
		Checks []checkView `json:"checks"`
	}{"ok", phaseNames[a.phase.Load()], []checkView{}}
	status := http.StatusOK
	if w := a.waiting.Load(); w != nil {
		reply.Checks = append(reply.Checks, checkView{Name: w.part, Status: "waiting", Error: w.err.Error()})
	}
	if reply.Phase != phaseNames[running] {
		status, reply.Status = http.StatusServiceUnavailable, "unavailable"
	}
	for _, c := range a.Checks(r.Context()) {
		v := checkView{Name: c.Name, Status: "ok", TookMS: c.Took.Milliseconds()}
		if c.Err != nil {
			v.Status, v.Error = "failed", c.Err.Error()
			status, reply.Status = http.StatusServiceUnavailable, "unavailable"
		}
		reply.Checks = append(reply.Checks, v)
	}
	replyJSON(w, status, reply)
}

// serveLoopCall answers POST /debug/loops/{name}/run. It replies when the call has ended.
func (a *App) serveLoopCall(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	for _, p := range a.parts {
		if l, ok := p.Part.(*LoopPart); ok && p.name == name {
			begin := time.Now()
			if err := l.RunNow(r.Context()); err != nil {
				replyError(w, err)
				return
			}
			replyJSON(w, http.StatusOK, map[string]any{"took_ms": time.Since(begin).Milliseconds()})
			return
		}
	}
	replyError(w, fault.New(fault.NotFound, "loop %q does not exist; GET /debug/loops lists the loops", name))
}

// levelView is the body of /debug/loglevel.
type levelView struct {
	Level string `json:"level"`
}

// showLevel answers with the log level, or with 501 if level is nil.
func showLevel(w http.ResponseWriter, level *slog.LevelVar) {
	if level == nil {
		replyError(w, fault.New(fault.Unimplemented, "the log level of this process cannot be set"))
		return
	}
	replyJSON(w, http.StatusOK, levelView{level.Level().String()})
}

// serveLevel answers PUT /debug/loglevel.
func (a *App) serveLevel(w http.ResponseWriter, r *http.Request, level *slog.LevelVar) {
	if level == nil {
		showLevel(w, level)
		return
	}
	var in levelView
	var l slog.Level
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&in)
	if err == nil {
		err = l.UnmarshalText([]byte(in.Level))
	}
	if err != nil {
		replyError(w, fault.New(fault.Invalid, `set the log level: the body must be {"level": L}, where L is "debug", "info", "warn" or "error": %w`, err))
		return
	}
	a.cfg.Logger.WarnContext(r.Context(), "log level set", "from", level.Level().String(), "to", l.String())
	level.Set(l)
	showLevel(w, level)
}

// replyError answers with the text of an error, and the status of its code.
func replyError(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, fault.Invalid):
		status = http.StatusBadRequest
	case errors.Is(err, fault.Denied):
		status = http.StatusForbidden
	case errors.Is(err, fault.NotFound):
		status = http.StatusNotFound
	case errors.Is(err, fault.Unimplemented):
		status = http.StatusNotImplemented
	case errors.Is(err, fault.Unavailable):
		status = http.StatusServiceUnavailable
	}
	replyJSON(w, status, map[string]string{"error": err.Error()})
}

// replyJSON answers with v as JSON.
func replyJSON(w http.ResponseWriter, status int, v any) {
	out, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		status, out = http.StatusInternalServerError, fmt.Appendf(nil, `{"error": %q}`, err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(out, '\n')) // an error means that the client has closed the connection
}
