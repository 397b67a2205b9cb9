package service

import (
	"net/http"
	"time"
)

// HTTPOptions are the operator's options for an HTTP listener: the section [wsgi], in the form of package service/config. Their names
// are those of OpenStack's services.
type HTTPOptions struct {
	CertFile    string        `ini:"ssl_cert_file" protects:"true" deprecated:"DEFAULT.ssl_cert_file" help:"certificate of the API, in PEM form, with which the API uses HTTPS; a changed file is read again"`
	KeyFile     string        `ini:"ssl_key_file" protects:"true" deprecated:"DEFAULT.ssl_key_file" help:"private key of the API's certificate"`
	CAFile      string        `ini:"ssl_ca_file" protects:"true" deprecated:"DEFAULT.ssl_ca_file" help:"authorities of the certificates that clients must show (default: clients need no certificate)"`
	BodyTimeout time.Duration `ini:"client_body_timeout" default:"30" min:"1ms" help:"seconds that a client may take to send a request's body"`
}

// Config returns the configuration for [NewHTTP] with an address and a handler. It reads no file, because a service without an API may run
// on a machine without the files. [HTTPConfig.Validate] reads them.
func (o *HTTPOptions) Config(addr string, h http.Handler) HTTPConfig {
	return HTTPConfig{Addr: addr, Handler: h, CertFile: o.CertFile, KeyFile: o.KeyFile, ClientCAFile: o.CAFile, BodyTimeout: o.BodyTimeout}
}
