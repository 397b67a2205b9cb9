package api

import (
	"net/http"
	"time"

	"github.com/klauspost/compress/gzhttp"
	"github.com/rs/cors"
)

// CORS lists the web pages that may use the API from a browser (Cross-Origin Resource Sharing).
type CORS struct {
	// Origins are the origins of the pages, such as "https://dashboard.example.org". "*" stands for
	// all origins; use it only for an API without authentication.
	Origins []string
	// MaxAge is how long a browser may cache the permission. Default 10 minutes.
	MaxAge time.Duration
}

// wrapHandler adds compression and CORS to a handler, if cfg has them.
func wrapHandler(cfg Config, h http.Handler) http.Handler {
	if cfg.Gzip {
		wrap, err := gzhttp.NewWrapper(gzhttp.MinSize(1024))
		if err != nil {
			panic("api: " + err.Error())
		}
		h = wrap(h)
	}
	if c := cfg.CORS; c != nil {
		age := c.MaxAge
		if age <= 0 {
			age = 10 * time.Minute
		}
		exposed := append([]string{requestIDHeader, versionHeader, "Location", "ETag", "Retry-After"}, cfg.RequestIDHeaders...)
		if cfg.Microversions != nil {
			exposed = append(exposed, cfg.Microversions.Headers...)
		}
		h = cors.New(cors.Options{
			AllowedOrigins: c.Origins, MaxAge: int(age.Seconds()), ExposedHeaders: exposed, AllowedHeaders: []string{"*"},
			AllowedMethods: []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete},
		}).Handler(h)
	}
	return h
}
