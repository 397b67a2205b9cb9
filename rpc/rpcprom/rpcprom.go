// Package rpcprom has the metrics of rpc clients, servers and buses, for Prometheus.
//
//	m := rpcprom.New()
//	prometheus.MustRegister(m)
//	client := rpc.NewClient(bus, rpc.ClientConfig{Interceptors: []rpc.Interceptor{m.Client()}})
//	server := rpc.NewServer(bus, rpc.ServerConfig{Interface: backup.Interface, Interceptors: []rpc.Interceptor{m.Server()}})
//	m.AddClient(client)
//	m.AddServer(server)
//	m.AddBus(bus)
//
// The metrics, all with the prefix armature_rpc_:
//
//	client_requests_total            counter    interface, method, kind, code  sent requests by result code
//	client_request_duration_seconds  histogram  interface, method, kind        until the reply came, or the broker confirmed the message
//	client_in_flight                 gauge      interface                      requests that wait now
//	client_no_consumer_total         counter    interface                      requests that failed with ErrNoConsumer
//	client_late_replies_total        counter                                   replies that came after their calls had ended
//	client_canceled_total            counter                                   cancel messages sent to servers
//	client_heartbeat_lost_total      counter                                   calls that failed with ErrHeartbeatLost
//	client_lost_total                counter                                   calls that failed with ErrServerLost
//	server_requests_total            counter    interface, method, kind, code  handled requests by result code
//	server_request_duration_seconds  histogram  interface, method, kind        duration of the handler
//	server_in_flight                 gauge      interface                      handlers that run now
//	server_expired_total             counter    interface                      requests dropped because their deadline had passed
//	server_canceled_total            counter    interface                      running handlers canceled by their callers
//	server_redelivered_total         counter    interface                      casts published again for their next delivery attempt
//	server_duplicate_total           counter    interface                      deliveries of casts that were handled before, or published again for a newer attempt
//	server_dead_lettered_total       counter    interface                      dead-lettered messages
//	server_malformed_total           counter    interface                      messages that could not be read or were too large
//	server_lost_replies_total        counter    interface                      replies that could not be sent to their callers
//	bus_reconnects_total             counter                                   lost connections that were replaced
//	bus_blocked                      gauge                                     1 while the broker accepts no messages
//	client_request_seconds           histogram  interface, method, kind        deprecated: client_request_duration_seconds
//	server_request_seconds           histogram  interface, method, kind        deprecated: server_request_duration_seconds
//	client_silent_total              counter                                   deprecated: client_heartbeat_lost_total
//
// The label kind is call, cast or fanout. The label code is OK or a fault code, such as
// Timeout, Unavailable (not executed) and Unknown (may have been executed).
package rpcprom

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/bus"
)

const prefix = "armature_rpc_"

// Metrics is a [prometheus.Collector]. It is safe for concurrent use.
type Metrics struct {
	client, server side
	noConsumer     *prometheus.CounterVec
	all            []prometheus.Collector

	mu      sync.Mutex
	clients []*rpc.Client
	servers []*rpc.Server
	buses   []func() bus.Stats
}

// side has the metrics that clients and servers have in common.
type side struct {
	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	seconds  *prometheus.HistogramVec // the deprecated name of duration
	flight   *prometheus.GaugeVec     // the calls in progress of clients; nil for servers, whose value is in rpc.ServerStats
}

// New returns metrics. Give clients and servers their interceptors, and add clients, servers and buses.
func New() *Metrics {
	request := []string{"interface", "method", "kind"}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + name, Help: help, Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}, request)
	}
	newSide := func(name, total, duration string) side {
		return side{
			total: prometheus.NewCounterVec(prometheus.CounterOpts{
				Name: prefix + name + "_requests_total", Help: total,
			}, append(request[:3:3], "code")),
			duration: histogram(name+"_request_duration_seconds", duration),
			seconds:  histogram(name+"_request_seconds", "Deprecated: use "+prefix+name+"_request_duration_seconds."),
		}
	}
	m := &Metrics{
		client: newSide("client", "Sent requests by result code.", "Duration until the reply came, or the broker confirmed the message."),
		server: newSide("server", "Handled requests by result code.", "Duration of the handler."),
	}
	m.client.flight = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: prefix + "client_in_flight", Help: "Requests that wait now.",
	}, []string{"interface"})
	m.noConsumer = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: prefix + "client_no_consumer_total", Help: "Requests that failed because no server listens.",
	}, []string{"interface"})
	m.all = []prometheus.Collector{
		m.client.total, m.client.duration, m.client.seconds, m.client.flight, m.noConsumer,
		m.server.total, m.server.duration, m.server.seconds,
	}
	return m
}

// Client returns the interceptor for clients. It should be the first interceptor, so
// that it also counts requests that other interceptors refuse.
func (m *Metrics) Client() rpc.Interceptor {
	return func(ctx context.Context, info rpc.Info, req any, next func(context.Context, any) (any, error)) (any, error) {
		flight := m.client.flight.WithLabelValues(info.Interface)
		flight.Inc()
		defer flight.Dec()
		resp, err := m.client.observe(ctx, info, req, next)
		if errors.Is(err, rpc.ErrNoConsumer) && !fault.IsRemote(err) {
			m.noConsumer.WithLabelValues(info.Interface).Inc()
		}
		return resp, err
	}
}

// Server returns the interceptor for servers. It should be the first interceptor, for
// the same reason.
func (m *Metrics) Server() rpc.Interceptor { return m.server.observe }

func (s side) observe(ctx context.Context, info rpc.Info, req any, next func(context.Context, any) (any, error)) (resp any, err error) {
	start := time.Now()
	code := fault.Internal.String() // used if next panics; the panic continues
	defer func() {
		took := time.Since(start).Seconds()
		s.duration.WithLabelValues(info.Interface, info.Method, info.Kind).Observe(took)
		s.seconds.WithLabelValues(info.Interface, info.Method, info.Kind).Observe(took)
		s.total.WithLabelValues(info.Interface, info.Method, info.Kind, code).Inc()
	}()
	if resp, err = next(ctx, req); err != nil {
		code = fault.CodeOf(err).String()
	} else {
		code = "OK"
	}
	return resp, err
}

// AddClient adds a client. The counters of all clients are added up.
func (m *Metrics) AddClient(c *rpc.Client) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clients = append(m.clients, c)
}

// AddServer adds a server. The counters of all servers of an interface are added up.
func (m *Metrics) AddServer(s *rpc.Server) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.servers = append(m.servers, s)
}

// AddBus adds a bus. The metrics of all buses are added up. A bus without Capabilities.Stats is ignored.
func (m *Metrics) AddBus(b bus.Bus) {
	stats := b.Capabilities().Stats
	if stats == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.buses = append(m.buses, stats)
}

// stat is a metric whose value is stored in a client, a server or a bus.
type stat[T any] struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(T) uint64
}

func newStat[T any](name, help string, kind prometheus.ValueType, of func(T) uint64, labels ...string) stat[T] {
	return stat[T]{prometheus.NewDesc(prefix+name, help, labels, nil), kind, of}
}

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

var clientStats = []stat[rpc.ClientStats]{
	newStat("client_late_replies_total", "Replies that came after their calls had ended.", counter, func(s rpc.ClientStats) uint64 { return s.Late }),
	newStat("client_canceled_total", "Cancel messages sent to servers.", counter, func(s rpc.ClientStats) uint64 { return s.Canceled }),
	newStat("client_heartbeat_lost_total", "Calls that ended by the heartbeat timeout.", counter, func(s rpc.ClientStats) uint64 { return s.HeartbeatLost }),
	newStat("client_silent_total", "Deprecated: use "+prefix+"client_heartbeat_lost_total.", counter, func(s rpc.ClientStats) uint64 { return s.HeartbeatLost }),
	newStat("client_lost_total", "Calls whose server's process was lost.", counter, func(s rpc.ClientStats) uint64 { return s.Lost }),
}

var serverStats = []stat[rpc.ServerStats]{
	newStat("server_in_flight", "Handlers that run now.", gauge, func(s rpc.ServerStats) uint64 { return s.InFlight }, "interface"),
	newStat("server_expired_total", "Requests dropped because their deadline had passed.", counter, func(s rpc.ServerStats) uint64 { return s.Expired }, "interface"),
	newStat("server_canceled_total", "Running handlers canceled by their callers.", counter, func(s rpc.ServerStats) uint64 { return s.Canceled }, "interface"),
	newStat("server_redelivered_total", "Casts published again for their next delivery attempt.", counter, func(s rpc.ServerStats) uint64 { return s.Redelivered }, "interface"),
	newStat("server_duplicate_total", "Deliveries of casts that were handled before, or published again for a newer attempt.", counter, func(s rpc.ServerStats) uint64 { return s.Duplicate }, "interface"),
	newStat("server_dead_lettered_total", "Dead-lettered messages.", counter, func(s rpc.ServerStats) uint64 { return s.DeadLettered }, "interface"),
	newStat("server_malformed_total", "Messages that could not be read or were too large.", counter, func(s rpc.ServerStats) uint64 { return s.Malformed }, "interface"),
	newStat("server_lost_replies_total", "Replies that could not be sent to their callers.", counter, func(s rpc.ServerStats) uint64 { return s.LostReplies }, "interface"),
}

var busStats = []stat[bus.Stats]{
	newStat("bus_reconnects_total", "Lost connections that were replaced.", counter, func(s bus.Stats) uint64 { return s.Reconnects }),
	newStat("bus_blocked", "1 while the broker accepts no messages.", gauge, func(s bus.Stats) uint64 {
		if s.Blocked {
			return 1
		}
		return 0
	}),
}

// Describe implements [prometheus.Collector].
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all {
		c.Describe(ch)
	}
	for _, s := range clientStats {
		ch <- s.desc
	}
	for _, s := range serverStats {
		ch <- s.desc
	}
	for _, s := range busStats {
		ch <- s.desc
	}
}

// Collect implements [prometheus.Collector].
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all {
		c.Collect(ch)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var clients []rpc.ClientStats
	for _, c := range m.clients {
		clients = append(clients, c.Stats())
	}
	collectStats(ch, clientStats, clients)
	servers := map[string][]rpc.ServerStats{}
	for _, s := range m.servers {
		st := s.Stats()
		servers[st.Interface] = append(servers[st.Interface], st)
	}
	for iface, list := range servers {
		collectStats(ch, serverStats, list, iface)
	}
	var buses []bus.Stats
	for _, stats := range m.buses {
		buses = append(buses, stats())
	}
	collectStats(ch, busStats, buses)
}

// collectStats sends the sum of each stat over the elements of all. It sends nothing if
// all is empty.
func collectStats[T any](ch chan<- prometheus.Metric, stats []stat[T], all []T, labels ...string) {
	if len(all) == 0 {
		return
	}
	for _, s := range stats {
		var n uint64
		for _, x := range all {
			n += s.of(x)
		}
		ch <- prometheus.MustNewConstMetric(s.desc, s.kind, float64(n), labels...)
	}
}
