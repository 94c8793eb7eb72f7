package main

import (
	_ "github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	"github.com/spf13/cobra"
)

// newDNSCommand hands over to coredns, which parses the arguments itself.
func newDNSCommand() *cobra.Command {
	return &cobra.Command{Use: "coredns", DisableFlagParsing: true, Run: func(*cobra.Command, []string) { coremain.Run() }}
}
