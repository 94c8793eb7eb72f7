// The transit engine of HashiCorp Vault over TLS on the loopback, without Vault's core, tokens and seal: for tests.
//
//	engine SERVER.CRT SERVER.KEY     prints its port
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"

	log "github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/builtin/logical/transit"
	"github.com/hashicorp/vault/sdk/logical"
)

func main() {
	ctx, storage := context.Background(), &logical.InmemStorage{}
	engine, err := transit.Factory(ctx, &logical.BackendConfig{
		StorageView: storage, Logger: log.NewNullLogger(), System: logical.TestSystemView(),
	})
	check(err)
	check(engine.Initialize(ctx, &logical.InitializationRequest{Storage: storage}))
	certificate, err := tls.LoadX509KeyPair(os.Args[1], os.Args[2])
	check(err)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	check(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	check(http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fields := map[string]interface{}{}
		_ = json.NewDecoder(r.Body).Decode(&fields)
		request := &logical.Request{
			Operation: logical.UpdateOperation, Path: strings.TrimPrefix(r.URL.Path, "/v1/transit/"), Data: fields, Storage: storage,
		}
		response, err := engine.HandleRequest(ctx, request)
		status, content := http.StatusOK, map[string]interface{}{}
		if code, failure := logical.RespondErrorCommon(request, response, err); failure != nil {
			status, content["errors"] = code, []string{failure.Error()}
		} else if response != nil {
			content["data"] = response.Data
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(content)
	})))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
