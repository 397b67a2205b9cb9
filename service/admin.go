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
	// Addr is where it listens, as of [HTTPConfig]: a loopback address or a Unix socket.
	// Clients are not asked for an identity, and they can stop loops, read profiles and set the
	// level of the log.
	Addr string
	// Hosts are the names and addresses by which clients of other machines reach it, such as
	// "node1.example.org". They are what makes another Addr than a loopback one a valid one:
	// set them only where a firewall lets operators alone in. A request over TCP whose Host
	// header is neither one of them nor of this machine ("localhost", 127.0.0.1, [::1]) is
	// refused, so that a web page cannot reach it by a name of its own. Default: none.
	Hosts []string
	// Metrics serves /metrics. Default: there are none.
	Metrics http.Handler
	// Config returns what /debug/config shows, as JSON: each option's value and where
	// it came from, without secrets. Default: nothing.
	Config func() any
	// Level is the level of the log, which /debug/loglevel shows and sets. Default: it
	// cannot be set.
	Level *slog.LevelVar
}

// Validate reports Invalid if Addr can be reached from other machines and Hosts does not say
// that this is meant. The Start of the part of [App.Admin] does the same.
func (c AdminConfig) Validate() error {
	if strings.HasPrefix(c.Addr, "unix:") || len(c.Hosts) > 0 {
		return nil
	}
	host, _, err := net.SplitHostPort(c.Addr)
	if err != nil {
		return fault.New(fault.Invalid, "admin address %q: %w; write 127.0.0.1:9774 or unix:/run/admin.sock", c.Addr, err)
	}
	if !loopback(host) {
		return fault.New(fault.Invalid, "admin address %q can be reached from other machines, and clients are not asked for an identity: "+
			"listen on 127.0.0.1, [::1] or unix:/path, or name the hosts by which other machines may reach it", c.Addr)
	}
	return nil
}

// loopback reports whether a host is this machine, in numbers or as localhost.
func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback() || strings.EqualFold(host, "localhost")
}

// Admin returns a part that serves an operator, by default of this machine only:
//
//	GET  /livez                 200 while the process serves at all
//	GET  /readyz                200, or 503, with each check by name and why it fails
//	GET  /metrics               for Prometheus
//	GET  /debug/inflight        what runs, the longest first
//	GET  /debug/config          each option's value and where it came from
//	GET  /debug/loops           the periodic loops; POST /debug/loops/{name}/run calls one now
//	GET  /debug/loglevel        the log's level; PUT {"level": "debug"} sets it
//	GET  /debug/report          the report that SIGUSR2 writes
//	GET  /debug/pprof/          profiles
//	POST /debug/reload          as SIGHUP
//
// Add it first: it then answers before the others are started, and while they drain.
func (a *App) Admin(cfg AdminConfig) *HTTPPart {
	m := http.NewServeMux()
	m.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		show(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	m.HandleFunc("GET /readyz", a.readyz)
	if cfg.Metrics != nil {
		m.Handle("GET /metrics", cfg.Metrics)
	}
	m.HandleFunc("GET /debug/inflight", func(w http.ResponseWriter, _ *http.Request) { show(w, http.StatusOK, a.inflight.List()) })
	m.HandleFunc("GET /debug/config", func(w http.ResponseWriter, _ *http.Request) {
		var v any = struct{}{}
		if cfg.Config != nil {
			v = cfg.Config()
		}
		show(w, http.StatusOK, v)
	})
	m.HandleFunc("GET /debug/loops", func(w http.ResponseWriter, _ *http.Request) { show(w, http.StatusOK, a.Loops()) })
	m.HandleFunc("POST /debug/loops/{name}/run", a.runLoop)
	m.HandleFunc("GET /debug/loglevel", func(w http.ResponseWriter, _ *http.Request) { showLevel(w, cfg.Level) })
	m.HandleFunc("PUT /debug/loglevel", func(w http.ResponseWriter, r *http.Request) { a.setLevel(w, r, cfg.Level) })
	m.HandleFunc("GET /debug/report", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_ = a.Report(r.Context(), w) // the client has gone
	})
	m.HandleFunc("POST /debug/reload", func(w http.ResponseWriter, r *http.Request) { done(w, a.Reload(context.WithoutCancel(r.Context()))) })
	m.HandleFunc("GET /debug/pprof/", pprof.Index)
	m.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	m.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	m.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	m.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	p := HTTP(cfg.Addr, cfg.guard(m))
	p.validate = cfg.Validate
	return p
}

// guard refuses what a web page in a browser on this machine could send: a browser names the
// page's origin, and a page that has its own name point to this machine shows that name as Host.
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
			done(w, fault.New(fault.Denied, "requests of web pages are not answered"))
		case !strings.HasPrefix(c.Addr, "unix:") && !loopback(host) && !slices.ContainsFunc(c.Hosts, known):
			done(w, fault.New(fault.Denied, "the Host %q is not one of the admin listener: use its address", r.Host))
		default:
			next.ServeHTTP(w, r)
		}
	})
}

type checkView struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Error  string `json:"error,omitempty"`
	TookMS int64  `json:"took_ms"`
}

func (a *App) readyz(w http.ResponseWriter, r *http.Request) {
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
	show(w, status, reply)
}

func (a *App) runLoop(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	for _, p := range a.parts {
		if l, ok := p.Part.(*LoopPart); ok && p.name == name {
			begin := time.Now()
			if err := l.RunNow(r.Context()); err != nil {
				done(w, err)
				return
			}
			show(w, http.StatusOK, map[string]any{"took_ms": time.Since(begin).Milliseconds()})
			return
		}
	}
	done(w, fault.New(fault.NotFound, "there is no loop %q; GET /debug/loops lists them", name))
}

type levelView struct {
	Level string `json:"level"`
}

func showLevel(w http.ResponseWriter, level *slog.LevelVar) {
	if level == nil {
		done(w, fault.New(fault.Unimplemented, "this process has no level of the log that can be set"))
		return
	}
	show(w, http.StatusOK, levelView{level.Level().String()})
}

func (a *App) setLevel(w http.ResponseWriter, r *http.Request, level *slog.LevelVar) {
	var in levelView
	var l slog.Level
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&in)
	if err == nil {
		err = l.UnmarshalText([]byte(in.Level))
	}
	if err != nil {
		done(w, fault.New(fault.Invalid, `the body is {"level": "debug"}, or info, warn or error: %w`, err))
		return
	}
	if level != nil {
		a.cfg.Logger.WarnContext(r.Context(), "level of the log set", "from", level.Level().String(), "to", l.String())
		level.Set(l)
	}
	showLevel(w, level)
}

// done answers with an error, or that there was none.
func done(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch {
	case err == nil:
		show(w, http.StatusOK, map[string]string{"status": "ok"})
		return
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
	show(w, status, map[string]string{"error": err.Error()})
}

func show(w http.ResponseWriter, status int, v any) {
	out, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		status, out = http.StatusInternalServerError, fmt.Appendf(nil, `{"error": %q}`, err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(out, '\n')) // the client has gone: nobody is left to tell
}
